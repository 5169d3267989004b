// The download box and the preview, kept as the form is.
//
// "Download" and "Save in background" send the form itself, once the server has said that it can be exported: a server
// that is away is said on this page. The lines to copy cannot be used until they are those of the form. Neither waits
// for the preview.

import { fadeFaults, showFault } from "./faults.js";
import { debounce, refresh } from "./live.js";
import { showNotes } from "./rows.js";

const UNREACHABLE = "The server cannot be reached.";
// Bytes: the server takes an address, with the method and the protocol before and after it, of 128 kB.
const LONGEST_ADDRESS = (128 << 10) - 100;
// Milliseconds: from the last change to the request for the links, from there until the page says that it waits for
// them, from their arrival to the request for the preview, and from a failed request to the next one.
const PAUSE = 80;
const SILENCE = 1000;
const PREVIEW_PAUSE = 120;
const FIRST_RETRY = 1000;
const LONGEST_RETRY = 10000;

const form = document.getElementById("shape");
const buttons = [document.getElementById("download"), document.getElementById("save")];
const lines = document.getElementById("lines");
const obstacle = document.getElementById("obstacle");
const size = document.getElementById("size");
const preview = document.getElementById("preview");

// Counts the changes of the form. The links and the preview are those of the form as it was after so many.
let changes = 0;
let current = 0;
let previewed = document.querySelector("[data-retry]") ? -1 : 0;
// The button that was pressed, and the one for which the server has then been asked.
let pressed = null;
let allowed = null;
let retryDelay = FIRST_RETRY;
let retry;
// The ids of the tabs that the user chose, by the name of their group.
const chosenTabs = {};

const isUsable = (answer) => "usable" in answer.dataset;
const updateSoon = debounce(update, PAUSE);

// The fields of a form as it sends them. In a copy of the form, the tabs are fields of it too.
export function fieldsOf(part) {
  return new URLSearchParams([...new FormData(part)].filter(([name]) => name !== "line"));
}

// Call this at every change of the form. What is shown of its export is old from now on.
export function formChanged() {
  changes += 1;
  lines.inert = true;
  setBusy(true);
  updateSoon();
}

// Call this when the form is submitted. Returns whether the browser may send it; otherwise it is submitted again.
export function maySubmit(button) {
  const may = button === allowed && current === changes;
  allowed = null;
  if (may) return true;
  pressed = button;
  update();
  return false;
}

export const isResultButton = (button) => buttons.includes(button);

// Call this when the browser has a network again.
export function networkBack() {
  if (current !== changes) update();
}

export async function update() {
  clearTimeout(retry);
  setBusy(previewed !== changes);
  const waiting = setTimeout(showWaiting, SILENCE);
  try {
    const links = await ask(["lines", "obstacle", "filename"], "links").finally(() => clearTimeout(waiting));
    if (!links) return;
    showLinks(links);
    if (previewed === changes) return;
    await new Promise((done) => setTimeout(done, PREVIEW_PAUSE));
    if (current !== changes) return;
    const whole = await ask(["obstacle", "about", "size", "preview"], "1");
    if (!whole) return;
    previewed = changes;
    showTabs();
    if (isUsable(whole)) showFault(whole);
    else refuse(whole);
    setBusy(false);
  } catch (error) {
    if (error.name !== "AbortError") showFailure(error);
  }
}

// Asks for parts of the page as the form is now. Returns what the server says of it, or null if the form has changed.
async function ask(parts, header) {
  const asked = changes;
  const address = `${form.getAttribute("action")}?${fieldsOf(form)}`;
  if (address.length > LONGEST_ADDRESS) throw new TooLong();
  const found = await refresh(address, parts, { "X-Sluice-Live": header });
  const answer = found.getElementById("changes");
  if (!answer) throw new OtherPage(found);
  showNotes(found);
  return asked === changes ? answer : null;
}

// The answer is an error page, or that of a proxy.
class OtherPage extends Error {
  constructor(page) {
    super(page.querySelector("h1 + p")?.textContent ?? UNREACHABLE);
    if (page.querySelector(".status")?.textContent.startsWith("4")) this.advice = "Change anything to try again.";
  }
}

class TooLong extends Error {
  message = "What the form asks for is too long for an address.";
  advice = "Shorten its lists of values.";
}

// Shows that the links are those of the form, or what has to be corrected.
function showLinks(answer) {
  const button = pressed;
  pressed = null;
  current = changes;
  retryDelay = FIRST_RETRY;
  history.replaceState(null, "", answer.dataset.page);
  if (!isUsable(answer)) {
    refuse(answer);
    if (button) obstacle.querySelector("a")?.focus();
    return;
  }
  for (const each of buttons) each.disabled = false;
  lines.inert = false;
  showTabs();
  if (previewed !== changes) fadeFaults();
  if (!button) return;
  allowed = button;
  form.requestSubmit(button);
}

function refuse(answer) {
  for (const button of buttons) button.disabled = true;
  lines.replaceChildren();
  showFault(answer);
}

function showWaiting() {
  if (!obstacle.textContent) obstacle.replaceChildren(paragraph("notice", "Waiting for the server…"));
}

// An error without advice may pass by itself.
function showFailure(error) {
  const reason = error.name === "TypeError" ? UNREACHABLE : error.message;
  const text = `${reason} ${error.advice ?? "Trying again…"}`;
  changes += 1; // whether the links are still right is not known
  pressed = null;
  lines.inert = true;
  for (const button of buttons) button.disabled = true;
  setBusy(false);
  if (!error.advice) {
    retry = setTimeout(update, retryDelay);
    retryDelay = Math.min(2 * retryDelay, LONGEST_RETRY);
  }
  if (obstacle.textContent === text) return; // a screen reader says it once
  obstacle.replaceChildren(paragraph("notice bad", text));
  size.replaceChildren();
  preview.replaceChildren(preview.querySelector("h2"), paragraph("empty", reason));
}

function paragraph(kind, text) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

function setBusy(busy) {
  for (const part of [size, preview]) part.setAttribute("aria-busy", busy);
}

// Opens the tabs that the user chose, and shows the buttons that copy where the browser can.
export function showTabs() {
  for (const id of Object.values(chosenTabs)) {
    const tab = document.getElementById(id);
    if (tab) tab.checked = true;
  }
  if (!navigator.clipboard) return;
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}

export function tabChosen(tab) {
  chosenTabs[tab.name] = tab.id;
}
