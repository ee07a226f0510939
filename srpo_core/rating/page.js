"use strict";
const task = JSON.parse(document.getElementById("task").textContent);
const PAIRED = task.protocol === "paired";
const SIDES = PAIRED ? ["left", "right"] : ["left"];
const find = (id) => document.getElementById(id);
const LOOKING = 150; /* milliseconds before an item can be answered: nobody sees and answers in less */
let rater = "", items = [], history = [], given = {}, shownAt = 0, seenFor = 0, ready = false, waiting = 0, transport;

/* A hash of (seed, rater, item), the same as in presentation.py. */
function draw(key) {
  let value = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) value = Math.imul(value ^ key.charCodeAt(i), 0x01000193);
  for (const [shift, factor] of [[16, 0x85ebca6b], [13, 0xc2b2ae35], [16, 1]]) value = Math.imul(value ^ (value >>> shift), factor);
  return value >>> 0;
}

function ordered(all, seed, name) {
  const keys = new Map(all.map((item) => [item.item, draw(`${seed}/order/${name}/${item.item}`)]));
  return [...all].sort((a, b) => a.phase - b.phase || keys.get(a.item) - keys.get(b.item) || (a.item < b.item ? -1 : 1));
}

/* An address beside the page's, without the user and password that a link may have: fetch takes none. */
const beside = (path) => new URL(path, location.origin + location.pathname).href;

/* The page of a server: every answer is confirmed before the next item is shown. */
const served = {
  async call(path, body) {
    let answer;
    try {
      answer = await fetch(beside(path), {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({rater, ...body})});
    } catch (error) {
      throw new Error("The server does not answer, so your last answer is not saved. Start it again, or wait, and answer again.");
    }
    const content = await answer.json().catch(() => ({}));
    if (answer.ok) return content;
    const text = typeof content.detail === "string" ? content.detail : `The server answers with status ${answer.status}.`;
    throw Object.assign(new Error(text), {outdated: answer.status === 409});
  },
  open() { return this.call("rater", {}); },
  image(item, side) { return beside(`image/${rater}/${item.item}/${side}`); },
  save(item, answers, seconds) { return this.call("answer", {item: item.item, answers, seconds, page: task.page}); },
  undo(item) { return this.call("undo", {item}); },
};

/* An exported page: answers are kept in localStorage and saved as a file. */
const exported = {
  answers: [],
  isKept: true,
  get key() { return `srpo-rating-${task.task}-${rater}`; },
  async open() {
    try {
      this.answers = JSON.parse(localStorage.getItem(this.key) || "[]");
    } catch (error) {
      this.answers = [];
      this.warn();
    }
    find("saving").hidden = false;
    return {items: ordered(task.items, task.seed, rater), answered: this.answers.map((one) => one.item)};
  },
  image(item, side) {
    const aIsLeft = draw(`${task.seed}/side/${rater}/${item.item}`) % 2 === 0;
    return item.images[PAIRED && aIsLeft !== (side === "left") ? 1 : 0];
  },
  async save(item, answers, seconds) {
    this.answers.push({item: item.item, answers, seconds, answered_at: new Date().toISOString()});
    this.keep();
  },
  async undo(item) {
    this.answers = this.answers.filter((one) => one.item !== item);
    this.keep();
  },
  keep() {
    try {
      localStorage.setItem(this.key, JSON.stringify(this.answers));
    } catch (error) {
      this.warn();
    }
  },
  warn() {
    this.isKept = false;
    find("warning").hidden = false;
  },
  download() {
    const content = {format: 1, task: task.task, protocol: task.protocol, rater, page: task.page, answers: this.answers};
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], {type: "application/json"}));
    link.download = `answers-${task.task}-${rater}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  },
};

function showError(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function buildRating() {
  find("images").className = PAIRED ? "" : "single";
  document.body.className = task.protocol;
  for (const side of SIDES) {
    const button = element("button", {type: "button", title: "Show larger"}, element("img", {id: `image-${side}`, draggable: false}));
    button.addEventListener("click", () => zoom(side));
    find("images").append(button);
  }
  for (const dimension of task.dimensions) {
    const field = element("fieldset", {id: `question-${dimension.name}`}, element("legend", {textContent: dimension.question}));
    const row = element("div", {className: "answers"});
    for (const answer of task.answers) {
      const button = element("button", {type: "button", textContent: answer.text + " "}, element("kbd", {textContent: answer.hint}));
      button.dataset.dimension = dimension.name;
      button.dataset.answer = answer.name;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => choose(dimension.name, answer.name));
      row.append(button);
    }
    field.append(row);
    find("questions").append(field);
  }
}

const current = () => items.find((item) => !history.includes(item.item));
const nextDimension = () => task.dimensions.find((dimension) => !(dimension.name in given));

function showChoices() {
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.setAttribute("aria-pressed", String(given[button.dataset.dimension] === button.dataset.answer));
    button.disabled = !ready || Boolean(waiting);
  }
  const open = nextDimension();
  for (const dimension of task.dimensions) {
    find(`question-${dimension.name}`).classList.toggle("current", !PAIRED && dimension === open);
  }
  find("undo").disabled = !(ready && (history.length || Object.keys(given).length));
}

async function showItem() {
  const item = current();
  given = {};
  ready = false;
  stopWaiting();
  find("progress").max = items.length;
  find("progress").value = history.length;
  find("count").textContent = `${history.length} of ${items.length}`;
  find("rating").hidden = !item;
  find("done").hidden = Boolean(item);
  if (!item) {
    ready = true;
    find("back").focus();
    return;
  }
  find("prompt").textContent = item.prompt;
  find("images").classList.add("loading");
  showChoices();
  try {
    await Promise.all(SIDES.map((side) => load(item, side)));
  } catch (error) {
    showError("An image cannot be loaded: reload the page.");
    return;
  }
  find("images").classList.remove("loading");
  ready = true;
  shownAt = performance.now();
  seenFor = 0;
  waiting = setTimeout(() => { stopWaiting(); showChoices(); }, LOOKING);
  showChoices();
  preload();
}

function stopWaiting() {
  clearTimeout(waiting);
  waiting = 0;
}

/* Seconds for which the item was in sight: not those in which the page was hidden. */
const secondsSeen = () => Math.min((seenFor + performance.now() - shownAt) / 1000, task.longest);

function load(item, side) {
  const image = find(`image-${side}`);
  image.alt = PAIRED ? `The ${side} image for “${item.prompt}”` : `The image for “${item.prompt}”`;
  image.src = transport.image(item, side);
  return image.decode();
}

/* The images of the next item, so that no one waits for them. */
function preload() {
  const next = items.filter((item) => !history.includes(item.item))[1];
  if (next) for (const side of SIDES) new Image().src = transport.image(next, side);
}

async function choose(dimension, answer) {
  if (!ready || waiting) return;
  given[dimension] = answer;
  showChoices();
  if (nextDimension()) return;
  const item = current(), seconds = secondsSeen();
  ready = false;
  await attempt(async () => {
    await transport.save(item, given, seconds);
    history.push(item.item);
  });
}

async function undo() {
  if (!ready) return;
  const chosen = Object.keys(given);
  if (chosen.length) {
    delete given[chosen[chosen.length - 1]];
    showChoices();
    return;
  }
  if (!history.length) return;
  ready = false;
  await attempt(async () => {
    await transport.undo(history[history.length - 1]);
    history.pop();
  });
}

/* Do something that is saved, then show the item that follows; on an error, stay at this item. */
async function attempt(action) {
  try {
    await action();
    showError("");
  } catch (error) {
    showError(error.message);
    if (!error.outdated) {
      given = {};
      ready = true;
      showChoices();
      return;
    }
    await start(rater); /* the same rater has answered in another window */
    return;
  }
  await showItem();
}

function zoom(side) {
  const dialog = find("zoom"), image = find(`image-${side}`);
  dialog.querySelector("img").src = image.src;
  dialog.querySelector("img").alt = image.alt;
  dialog.showModal();
}

async function start(name) {
  rater = name;
  transport = task.mode === "served" ? served : exported;
  try {
    const state = await transport.open();
    items = state.items;
    history = state.answered;
  } catch (error) {
    showError(error.message);
    find("welcome").hidden = false;
    return;
  }
  find("welcome").hidden = true;
  await showItem();
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || find("zoom").open || !items.length) return;
  if (event.key.toLowerCase() === "u") return void undo();
  const answer = task.answers.find((one) => one.keys.includes(event.key.toLowerCase()));
  const dimension = nextDimension();
  if (!answer || !dimension || !current()) return;
  event.preventDefault();
  choose(dimension.name, answer.name);
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) seenFor += performance.now() - shownAt;
  shownAt = performance.now();
});
find("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  start(find("rater").value.trim());
});
find("undo").addEventListener("click", undo);
find("back").addEventListener("click", undo);
find("download").addEventListener("click", () => exported.download());
find("zoom").addEventListener("click", () => find("zoom").close());
window.addEventListener("beforeunload", (event) => {
  if (!exported.isKept) event.preventDefault();
});

find("instructions").textContent = task.instructions;
buildRating();
const linked = new URLSearchParams(location.search).get("rater");
if (linked) {
  find("rater").value = linked;
  if (find("rater").checkValidity()) start(linked); else find("welcome").hidden = false;
} else {
  find("welcome").hidden = false;
  find("rater").focus();
}
