// Updates the saved exports: a stream of events for each unfinished one, and a new page when the status of one changes.

import { refresh } from "./live.js";

// Streams open at a time. Over HTTP/1.1 a browser opens at most six connections to a server, and needs some for the page.
const MOST_STREAMS = 4;
const UNFINISHED = ["processing", "pending"];
const streams = new Map();
const timeFormat = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };

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

function showProgress(card, { progress }) {
  const texts = {
    percentage: `${Math.floor(progress.percentage)}%`,
    rows: progress.processedRows.toLocaleString("en"),
    bytes: size(progress.bytes),
    rate: progress.rate ? `${rounded(progress.rate)} rows/s` : "",
    eta: progress.etaSeconds === null ? "" : `${duration(progress.etaSeconds)} left`,
  };
  card.querySelector("progress").value = progress.percentage;
  for (const part of card.querySelectorAll("[data-show]")) part.textContent = texts[part.dataset.show];
}

// What the page calls the status of an export now, for example "ready".
const statusOf = (id) => document.querySelector(`[data-id="${id}"] .badge`)?.textContent ?? "";

// Fetches the page again. announcement: returns the text for screen readers, from the new page.
async function reload(announcement) {
  for (const stream of streams.values()) stream.close();
  streams.clear();
  try {
    await refresh("/saved", ["saved"]);
    document.getElementById("announcement").textContent = announcement();
    watch();
  } catch (error) {
    if (error.name !== "AbortError") setTimeout(reload, 3000, announcement);
  }
}

function watch() {
  for (const time of document.querySelectorAll("time")) {
    if (time.dateTime) time.textContent = new Date(time.dateTime).toLocaleString(undefined, timeFormat);
  }
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
      if (stream.readyState === EventSource.CLOSED) setTimeout(reload, 3000, () => "");
    };
  }
}

addEventListener("pagehide", () => streams.forEach((stream) => stream.close()));
addEventListener("pageshow", (event) => event.persisted && reload(() => ""));
watch();
