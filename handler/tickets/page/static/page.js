// Everything here is also possible without script, by links and forms; this adds keys, the live list and less reloading.
"use strict";

const list = document.getElementById("list");
const dialog = document.getElementById("choice");
const help = document.getElementById("help");
const form = document.getElementById("filters");
const state = document.getElementById("state");
const rows = () => [...document.querySelectorAll("tr[data-key]")];
const subject = (row) => row?.querySelector(".subject");
const focused = () => document.activeElement?.closest("[data-key]");

// Moving in the list: the link of a row gets the focus, so Enter opens it. In a ticket, j and k open its neighbours.
function move(step) {
  const all = rows();
  if (all.length) {
    const place = all.indexOf(focused());
    const next = place < 0 ? (step > 0 ? 0 : all.length - 1) : place + step;
    subject(all[Math.max(0, Math.min(all.length - 1, next))]).focus();
    return;
  }
  const links = JSON.parse(sessionStorage.getItem("list") ?? "[]");
  const place = links.indexOf(location.pathname + location.search);
  if (place >= 0 && links[place + step]) location.assign(links[place + step]);
}

// The list whose tickets j and k open, and what had the focus: a row, a filter, or in the end the ticket that was open.
addEventListener("pagehide", () => {
  if (list) sessionStorage.setItem("list", JSON.stringify(rows().map((row) => subject(row).getAttribute("href"))));
  const at = list ? document.activeElement?.id || focused()?.dataset.key : document.querySelector("article")?.dataset.key;
  if (at) sessionStorage.setItem("focus", at);
});
const before = list && sessionStorage.getItem("focus");
if (before) {
  sessionStorage.removeItem("focus");
  (subject(rows().find((row) => row.dataset.key === before)) ?? document.getElementById(before))?.focus();
}

// Correcting a label: the form of /choice in a dialog.
async function choose(address) {
  dialog.dataset.key = focused()?.dataset.key ?? ""; // what gets the focus when the page was loaded again
  const answer = await fetch(`${address}&fragment=1`);
  if (!answer.ok) return location.assign(address); // which shows the error
  dialog.innerHTML = await answer.text();
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("[aria-current]")?.focus();
}
dialog?.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("[data-close]")) {
    event.preventDefault();
    dialog.close();
  }
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-open]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  choose(link.getAttribute("href"));
});

const TASKS = { i: "intent", u: "urgency", s: "sentiment" };
function press(key) {
  const picker = document.querySelector("form.choice");
  if (picker && (dialog.open || !dialog.contains(picker))) {
    if (/^[0-9]$/.test(key)) picker.querySelectorAll("button[name=label]")[(Number(key) + 9) % 10]?.click();
    const buttons = [...picker.querySelectorAll("button[name=label]")];
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[key];
    if (step) buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
    return Boolean(step) || /^[0-9]$/.test(key);
  }
  const here = focused() ?? document.querySelector("article[data-key]");
  if (key in TASKS && here) choose(`${here.dataset.choice}&task=${TASKS[key]}`);
  else if (key === "j" || (key === "ArrowDown" && focused() && list)) move(1);
  else if (key === "k" || (key === "ArrowUp" && focused() && list)) move(-1);
  else if (key === "?") help.togglePopover();
  else if (key === "/") document.getElementById("words")?.focus();
  else if (key === "b") document.getElementById("back")?.click();
  else return false;
  return true;
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !help) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
  if (press(event.key)) event.preventDefault();
});

// Filters: a choice applies at once, and what is empty does not appear in the address.
form?.addEventListener("change", (event) => {
  if (event.target.matches("select, [type=checkbox]")) form.requestSubmit();
});
form?.addEventListener("formdata", (event) => {
  for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
});

// The live list. A hidden tab has no connection, because a browser allows only six per server.
let source;
function listen() {
  source?.close();
  if (document.hidden) return show("Paused");
  source = new EventSource(list.dataset.feed);
  source.addEventListener("rows", (event) => {
    show("Live");
    merge(JSON.parse(event.data));
  });
  source.addEventListener("problem", (event) => show("Interrupted", JSON.parse(event.data)));
  source.addEventListener("error", () => {
    show(source.readyState === EventSource.CLOSED ? "Disconnected" : "Connecting …");
  });
}
function show(name, problem = "") {
  if (state.textContent !== name) state.textContent = name;
  state.dataset.state = name;
  const line = document.getElementById("live-problem");
  line.textContent = problem;
  line.hidden = !problem;
}
function merge({ keys, html }) {
  const body = list.tBodies[0];
  const had = new Map(rows().map((row) => [row.dataset.key, row]));
  const focusedKey = body.contains(document.activeElement) && focused()?.dataset.key;
  keys.forEach((key, place) => {
    let row = had.get(key);
    had.delete(key);
    if (html[key]) {
      const made = document.createElement("template");
      made.innerHTML = html[key];
      const fresh = made.content.firstElementChild;
      if (!row) fresh.classList.add("is-new");
      if (row?.dataset.mark !== fresh.dataset.mark) {
        row?.replaceWith(fresh);
        row = fresh;
      }
    }
    if (row && body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
  });
  for (const row of had.values()) row.remove();
  const again = focusedKey && subject(rows().find((row) => row.dataset.key === focusedKey));
  if (again && document.activeElement !== again) again.focus({ preventScroll: true });
}
if (list?.dataset.feed) {
  document.addEventListener("visibilitychange", listen);
  addEventListener("pageshow", listen); // also when the browser shows a kept page again
}
