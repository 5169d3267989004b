// Updates the saved exports: a stream of events for each unfinished one, and a new page when the status of one changes.
// Searches while typing, and asks in a dialog before files are deleted.

import { debounce, refresh } from "./live.js";

// Streams open at a time. Over HTTP/1.1 a browser opens at most six connections to a server for all its tabs, and needs
// some for pages: a hidden tab has no stream.
const MOST_STREAMS = 4;
const UNFINISHED = ["processing", "pending"];
const RETRY_MILLISECONDS = 3000;
const streams = new Map();
const search = document.querySelector(".search");
const dialog = document.getElementById("dialog");
// The row of the last deletion: the next one there gets the focus.
let place = 0;
const timeFormat = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };

const rounded = (number) => Number(number.toPrecision(3)).toLocaleString("en");

function size(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 999.5) return `${Number(count.toPrecision(3))} ${unit}`;
    count /= 1000;
  }
  return `${Number(count.toPrecision(3))} TB`;
}

function duration(seconds) {
  for (const [length, unit] of [[86400, "days"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

// Before an export has started there is no estimate. One that was too low says nothing any more.
function estimateOf({ processedRows, totalRows }) {
  return totalRows !== null && processedRows <= totalRows ? ` of about ${rounded(totalRows)}` : "";
}

function showProgress(card, { progress }) {
  const texts = {
    percentage: `${Math.floor(progress.percentage)}%`,
    rows: progress.processedRows.toLocaleString("en"),
    estimate: estimateOf(progress),
    bytes: size(progress.bytes),
    rate: progress.rate ? `${rounded(progress.rate)} rows/s` : "",
    eta: progress.etaSeconds === null ? "" : `${duration(progress.etaSeconds)} left`,
  };
  const bar = card.querySelector("progress");
  if (bar) bar.value = progress.percentage;
  for (const part of card.querySelectorAll("[data-show]")) part.textContent = texts[part.dataset.show];
}

// What the page calls the status of an export now, for example "ready".
const statusOf = (id) => document.querySelector(`[data-id="${id}"] .badge`)?.textContent ?? "";

const boxes = () => [...document.querySelectorAll("article > [name=id]")];

// Shows what is selected, after a change of it or a new list.
function showSelection() {
  const every = boxes();
  if (!every.length) return;
  const count = every.filter((box) => box.checked).length;
  const all = document.getElementById("all");
  all.closest("label").hidden = false;
  all.checked = count === every.length;
  all.indeterminate = count > 0 && count < every.length;
  const button = document.getElementById("delete-chosen");
  button.disabled = !count;
  button.textContent = count ? `Delete selected (${count})` : "Delete selected";
}

function closeStreams() {
  for (const stream of streams.values()) stream.close();
  streams.clear();
}

// Fetches the page again and keeps the selection. announcement: returns the text for screen readers, from the new page.
async function reload(announcement) {
  closeStreams();
  const chosen = new Set(boxes().filter((box) => box.checked).map((box) => box.value));
  try {
    await refresh(location.pathname + location.search, ["saved"]);
    for (const box of boxes()) box.checked = chosen.has(box.value);
    document.getElementById("announcement").textContent = announcement();
    watch();
  } catch (error) {
    if (error.name !== "AbortError") setTimeout(reload, RETRY_MILLISECONDS, announcement);
  }
}

// Once, also if the server refuses several streams.
const reloadLater = debounce(() => reload(() => ""), RETRY_MILLISECONDS);

function watch() {
  showSelection();
  for (const time of document.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    const year = moment.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
    if (time.dateTime) time.textContent = moment.toLocaleString(undefined, { ...timeFormat, year });
  }
  if (document.hidden) return;
  const cards = UNFINISHED.flatMap((status) => [...document.querySelectorAll(`[data-status=${status}]`)]);
  for (const card of cards.slice(0, MOST_STREAMS)) {
    const { id, status } = card.dataset;
    const stream = new EventSource(`/exports/${id}/events`);
    streams.set(id, stream);
    stream.onmessage = (event) => {
      const current = JSON.parse(event.data);
      if (current.status === status) showProgress(card, current);
      else reload(() => `${current.relation}: ${statusOf(id)}`);
    };
    stream.addEventListener("removed", () => reload(() => "removed"));
    stream.onerror = () => {
      if (stream.readyState === EventSource.CLOSED) reloadLater();
    };
  }
}

// Sends a form that deletes. The answer is a question, which the dialog shows, or the list without what was deleted.
async function sendDeletion(form, submitter) {
  const fields = new URLSearchParams(new FormData(form, submitter));
  const response = await fetch(form.action, { method: "POST", body: fields, headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const question = page.getElementById("question");
  if (question) {
    dialog.replaceChildren(question);
    dialog.showModal();
    return;
  }
  dialog.close();
  await reload(() => (response.ok ? "Deleted" : ""));
  boxes()[Math.min(place, boxes().length - 1)]?.focus();
  if (response.ok) return;
  const notice = Object.assign(document.createElement("p"), { className: "notice", role: "alert" });
  notice.textContent = page.querySelector("h1 + p")?.textContent;
  document.getElementById("saved").prepend(notice);
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-delete]")) return;
  event.preventDefault();
  const article = form.closest("article");
  if (!dialog.open) place = article ? [...article.parentElement.querySelectorAll("article")].indexOf(article) : 0;
  sendDeletion(form, event.submitter).catch(() => form.submit()); // the browser says what is wrong
});
document.addEventListener("change", ({ target }) => {
  if (target.id === "all") for (const box of boxes()) box.checked = target.checked;
  if (target.id === "all" || target.name === "id") showSelection();
});
dialog.addEventListener("click", (event) => {
  if (event.target.id !== "keep") return;
  event.preventDefault();
  dialog.close();
});
if (search) {
  const searchSoon = debounce(() => {
    const fields = [...new FormData(search)].filter(([, value]) => value.trim());
    history.replaceState(null, "", fields.length ? `/saved?${new URLSearchParams(fields)}` : "/saved");
    reload(() => "");
  }, 120);
  search.querySelector("button").hidden = true;
  search.addEventListener("input", searchSoon);
  search.addEventListener("submit", (event) => {
    event.preventDefault();
    searchSoon();
  });
}
document.addEventListener("visibilitychange", () => (document.hidden ? closeStreams() : reload(() => "")));
addEventListener("pagehide", closeStreams);
addEventListener("pageshow", (event) => event.persisted && reload(() => ""));
watch();
