// Saved exports, live: one stream of events for each that runs, and the page anew when one begins or ends.

import { refresh } from "./live.js";

// Streams at once: a browser opens no more than six connections to one server.
const MOST = 4;
const UNFINISHED = ["processing", "pending"];
const streams = new Map();
const shown = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };

const about = (number) => Number(number.toPrecision(3)).toLocaleString("en");

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

function show(card, { progress }) {
  const texts = {
    percentage: `${Math.floor(progress.percentage)}%`,
    rows: progress.processedRows.toLocaleString("en"),
    bytes: size(progress.bytes),
    rate: progress.rate ? `${about(progress.rate)} rows/s` : "",
    eta: progress.etaSeconds === null ? "" : `${duration(progress.etaSeconds)} left`,
  };
  card.querySelector("progress").value = progress.percentage;
  for (const part of card.querySelectorAll("[data-show]")) part.textContent = texts[part.dataset.show];
}

async function again(news) {
  for (const stream of streams.values()) stream.close();
  streams.clear();
  try {
    await refresh("/saved", ["saved"]);
    document.getElementById("news").textContent = news;
    watch();
  } catch (error) {
    if (error.name !== "AbortError") setTimeout(again, 3000, news);
  }
}

function watch() {
  for (const time of document.querySelectorAll("time")) {
    if (time.dateTime) time.textContent = new Date(time.dateTime).toLocaleString(undefined, shown);
  }
  const cards = UNFINISHED.flatMap((status) => [...document.querySelectorAll(`[data-status=${status}]`)]);
  for (const card of cards.slice(0, MOST)) {
    const { id, status } = card.dataset;
    const stream = new EventSource(`/exports/${id}/events`);
    streams.set(id, stream);
    stream.onmessage = (event) => {
      const document = JSON.parse(event.data);
      if (document.status === status) show(card, document);
      else again(`${document.relation}: ${document.status}`);
    };
    stream.addEventListener("removed", () => again("removed"));
    stream.onerror = () => {
      if (stream.readyState === EventSource.CLOSED) setTimeout(again, 3000, "");
    };
  }
}

addEventListener("pagehide", () => streams.forEach((stream) => stream.close()));
addEventListener("pageshow", (event) => event.persisted && again(""));
watch();
