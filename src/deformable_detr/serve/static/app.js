"use strict";
// The page: a picture in, boxes out; the detections of one request are filtered here, at once. Where the model looked
// is asked for only when someone chooses a detection. Everything that came from outside is text, never HTML.

const get = id => document.getElementById(id);
const canvas = get("overlay"), pen = canvas.getContext("2d"), picture = get("picture");
const LEAST = 0.05, MOST_TRIES = 8;
const state = { model: null, token: "", file: null, found: null, explanation: null, explaining: false, selected: -1,
                pinned: false, hidden: new Set(), run: 0 };

// ------------------------------------------------------------ colours: far apart from one class to the next

const hue = label => (label * 137.508 + 205) % 360;
const colourOf = label => `hsl(${hue(label)} 85% 55%)`;

// ------------------------------------------------------------ messages

function say(text) { get("status").textContent = text; }
function complain(text) { get("message").textContent = text; }
function working(yes) {
  get("busy").hidden = !yes;
  get("stage").setAttribute("aria-busy", String(yes));
}
const megabytes = bytes => `${(bytes / 1048576).toFixed(bytes < 10485760 ? 1 : 0)} MB`;

// ------------------------------------------------------------ the server

class ServerError extends Error {
  constructor(status, kind, message) { super(message); this.status = status; this.kind = kind; }
}
async function ask(path, options = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch {
    throw new ServerError(0, "unreachable", "The server cannot be reached: is it still running?");
  }
  if (answer.ok) return answer.json();
  let error = {};
  try { error = (await answer.json()).error; } catch { /* a proxy's own page */ }
  const problem = new ServerError(answer.status, error.kind || "", error.message || `The server answered ${answer.status}.`);
  problem.after = Number(answer.headers.get("Retry-After")) || 0;
  throw problem;
}
async function patiently(run, path, form) {
  // Busy and starting pass: the server says when to come back.
  for (let tries = 1; ; tries++) {
    try {
      return await ask(path, { method: "POST", body: form() });
    } catch (error) {
      if (!error.after || tries === MOST_TRIES || run !== state.run) throw error;
      for (let left = error.after; left > 0 && run === state.run; left--) {
        complain(`${sentence(error)} Next try in ${left} s.`);
        await new Promise(done => setTimeout(done, 1000));
      }
      complain("");
    }
  }
}
function sentence(error) {
  const limits = state.model && state.model.limits;
  switch (error.kind) {
    case "body_too_large":
      return `This file is too large${limits ? `: the server takes up to ${megabytes(limits.max_body_bytes)}` : ""}.`;
    case "not_an_image": return "This file is not a picture that can be read: choose a JPEG, PNG or WebP.";
    case "busy": return "The server is busy.";
    case "starting": return "The server is still starting.";
    case "stopping": return "The server is stopping.";
    case "timeout": return "The server took too long: try a smaller picture, or later.";
    case "unauthorized": return "This server asks for its token.";
    default: return error.message.charAt(0).toUpperCase() + error.message.slice(1);
  }
}
function formOf(file) {
  return () => { const form = new FormData(); form.append("images", file, file.name || "picture"); return form; };
}

async function detect(file) {
  const run = ++state.run, limits = state.model && state.model.limits;
  complain("");
  if (limits && file.size > limits.max_body_bytes) {
    complain(`${sentence({ kind: "body_too_large" })} This one has ${megabytes(file.size)}.`);
    return;
  }
  Object.assign(state, { file, found: null, explanation: null, selected: -1, pinned: false });
  state.hidden.clear();
  get("download").disabled = true;
  working(true);
  say("Looking …");
  await show(file);
  fill();
  try {
    const most = limits ? Math.min(100, limits.max_detections) : 100;
    const answer = await patiently(run, `v1/detect?threshold=${least()}&max_detections=${most}`, formOf(file));
    if (run !== state.run) return;
    state.found = answer.results[0];
    get("download").disabled = false;
    fill();
    announce();
  } catch (error) {
    if (run !== state.run) return;
    say("");
    complain(sentence(error));
    if (error.kind === "unauthorized") askForToken();
  } finally {
    if (run === state.run) working(false);
  }
}
async function explain() {
  // Once for a picture, at the first detection that someone looks at.
  if (state.explanation || state.explaining || !state.found || !state.model || !state.model.can_explain) return;
  const run = state.run;
  state.explaining = true;
  try {
    const most = Math.min(100, state.model.limits.max_detections);
    const data = await patiently(run, `v1/explain?threshold=${least()}&max_detections=${most}`, formOf(state.file));
    if (run !== state.run) return;
    state.explanation = { data, attention: unpack(data.decoder) };
    get("layer").max = get("layer").value = data.decoder.layers;
    get("most").textContent = data.most.toPrecision(2);
    get("bar").style.background = colourBar(data);
    get("look").hidden = false;
    showValues();
    draw();
    if (state.selected >= 0) describe();
  } catch (error) {
    if (run === state.run) complain(sentence(error));
  } finally {
    state.explaining = false;
  }
}
function explained(detection) {
  // The same object among the explained ones: their order may differ where scores are all but equal.
  const rows = state.explanation ? state.explanation.data.detections : [];
  let best = -1, least = Infinity;
  rows.forEach((row, i) => {
    if (row.name !== detection.name) return;
    const distance = row.boxes.at(-1).reduce((sum, side, k) => sum + Math.abs(side - detection.box_xyxy[k]), 0)
      + Math.abs(row.score - detection.score) * 10;
    if (distance < least) { best = i; least = distance; }
  });
  return best;
}

// ------------------------------------------------------------ what is shown

// The slider's value, or the model's own thresholds, one for each class.
const least = () => Math.min(LEAST, ...(state.model ? state.model.thresholds : []));
const threshold = () => get("threshold").value / 100;
const isOwn = () => get("own").checked;
const inWords = () => isOwn() ? "the thresholds of their classes" : threshold().toFixed(2);
const reaches = d => d.score >= (isOwn() ? state.model.thresholds[d.label] : threshold());
function visible() {
  if (!state.found) return [];
  return state.found.detections.filter(d => reaches(d) && !state.hidden.has(d.label));
}
function offerOwn() {
  const { thresholds, classes, thresholds_from: reason } = state.model;
  const used = thresholds.filter((_, label) => classes[label] !== null);
  const differ = new Set(used).size > 1;
  get("own-line").hidden = !differ;
  get("own").checked = differ;
  get("own-text").textContent = `the model's own, one for each class (${reason})`;
  if (!differ && used.length) get("threshold").value = Math.round(100 * used[0]);
  showValues();
}
async function show(file) {
  const stage = get("stage");
  stopCamera();
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = file.name || "the picture";
  try {
    await picture.decode();
    stage.style.setProperty("--shape", picture.naturalWidth / picture.naturalHeight);
    stage.dataset.empty = "false";
    picture.hidden = canvas.hidden = false;
  } catch {  // a format that the server knows and this browser does not, or no picture: the server will say
    stage.dataset.empty = "true";
    picture.hidden = canvas.hidden = true;
  }
  draw();
}
function row(parts) {
  return parts.map(([kind, text]) => {
    const span = document.createElement("span");
    span.className = kind; span.textContent = text;
    return span;
  });
}
function swatch(label) {
  const square = document.createElement("span");
  square.className = "swatch"; square.style.background = colourOf(label);
  return square;
}
function fill() {
  const shown = visible(), list = get("detections"), focused = document.activeElement?.closest?.("#detections li");
  const focusedAt = focused ? [...list.children].indexOf(focused) : -1;
  if (state.selected >= shown.length) { state.selected = -1; state.pinned = false; }
  list.replaceChildren(...shown.map((d, i) => {
    const button = document.createElement("button"), item = document.createElement("li");
    button.type = "button";
    button.append(swatch(d.label), ...row([["name", d.name], ["number", d.score.toFixed(2)]]));
    button.setAttribute("aria-pressed", String(i === state.selected));
    button.addEventListener("pointerenter", event => event.pointerType === "mouse" && !state.pinned && select(i, false));
    button.addEventListener("focus", () => select(i, state.pinned));
    button.addEventListener("click", () => select(i, true));
    item.append(button);
    return item;
  }));
  if (focusedAt >= 0) list.children[Math.min(focusedAt, list.children.length - 1)]?.firstChild.focus();
  get("count").textContent = !state.found ? (state.file ? "…" : "no picture yet")
    : `${shown.length} detection${shown.length === 1 ? "" : "s"} above ${inWords()}`;
  fillClasses();
  draw();
}
function fillClasses() {
  const counts = new Map();
  for (const d of state.found ? state.found.detections : []) {
    const entry = counts.get(d.label) || { name: d.name, label: d.label, count: 0 };
    entry.count += reaches(d);
    counts.set(d.label, entry);
  }
  const entries = [...counts.values()].sort((a, b) => b.count - a.count || a.name.localeCompare(b.name));
  get("classes-section").hidden = !entries.length;
  const focused = document.activeElement?.dataset?.label;
  get("classes").replaceChildren(...entries.map(({ name, label, count }) => {
    const item = document.createElement("li"), line = document.createElement("label"), tick = document.createElement("input");
    tick.type = "checkbox"; tick.checked = !state.hidden.has(label); tick.dataset.label = label;
    tick.addEventListener("change", () => {
      tick.checked ? state.hidden.delete(label) : state.hidden.add(label);
      state.selected = -1; state.pinned = false;
      fill(); announce();
    });
    line.append(tick, swatch(label), ...row([["name", name], ["number", String(count)]]));
    item.append(line);
    return item;
  }));
  if (focused !== undefined) get("classes").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
}
function announce() {
  const shown = visible(), counts = new Map();
  for (const d of shown) counts.set(d.name, (counts.get(d.name) || 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 5).map(([name, count]) => `${count} ${name}`);
  say(shown.length ? `Found: ${parts.join(", ")}${counts.size > 5 ? ", …" : ""}. Choose a detection to see where the model looked.`
    : `Nothing is above ${inWords()}: lower the threshold.`);
}
function describe() {
  const chosen = visible()[state.selected];
  if (!chosen) return;
  const about = `${chosen.name} ${chosen.score.toFixed(2)}`;
  if (state.explanation && get("show-look").checked) {
    const at = explained(chosen);
    if (at < 0) { say(`${about}: not among the explained detections.`); return; }
    const { data, attention } = state.explanation, layer = get("layer").value - 1;
    const share = shareInside(data, look(data, attention, at, layer), data.detections[at].boxes.at(-1));
    say(`${about}: ${Math.round(100 * share)} % of layer ${layer + 1}'s attention is inside the box.`);
  } else if (state.model && !state.model.can_explain) {
    say(`${about}. This model cannot show where it looked.`);
  } else say(`${about}${get("show-look").checked ? ": asking where the model looked …" : ""}`);
}
function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  if (!state.found || !width) return;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const scale = width / state.found.width, shown = visible(), chosen = shown[state.selected];
  if (chosen) { pen.fillStyle = "rgba(20,20,20,.28)"; pen.fillRect(0, 0, width, height); }
  shown.forEach((d, i) => {
    if (i === state.selected) return;
    pen.globalAlpha = chosen ? 0.45 : 1;
    box(pen, d.box_xyxy, scale, "rgba(0,0,0,.55)", 4);
    box(pen, d.box_xyxy, scale, colourOf(d.label), 2);
  });
  pen.globalAlpha = 1;
  if (!chosen) { shown.forEach(d => label(d, scale, width)); return; }
  const at = get("show-look").checked ? explained(chosen) : -1;
  if (at >= 0) {
    const { data, attention } = state.explanation, layer = get("layer").value - 1;
    drawPoints(pen, data, look(data, attention, at, layer), scale, { least: get("weight").value / 100 * data.most });
    boxesOfLayers(pen, data.detections[at], layer, scale, get("history").checked);
  } else box(pen, chosen.box_xyxy, scale, colourOf(chosen.label), 3);
  label(chosen, scale, width);
}
function label(d, scale, width) {
  const text = `${d.name} ${d.score.toFixed(2)}`, size = 12;
  pen.font = `${size}px system-ui, sans-serif`;
  const wide = Math.min(pen.measureText(text).width + 8, width);
  const x = Math.max(0, Math.min(d.box_xyxy[0] * scale, width - wide));
  const above = d.box_xyxy[1] * scale - size - 6, y = above > 0 ? above : Math.max(0, d.box_xyxy[1] * scale);
  pen.fillStyle = colourOf(d.label); pen.fillRect(x, y, wide, size + 6);
  pen.fillStyle = "#000"; pen.fillText(text, x + 4, y + size + 0.5, width);
}

// ------------------------------------------------------------ hands

function select(index, pinned) {
  const shown = visible();
  if (!shown.length) return;
  state.selected = (index + shown.length) % shown.length;
  state.pinned = pinned;
  [...get("detections").querySelectorAll("button")].forEach((b, i) => {
    b.setAttribute("aria-pressed", String(i === state.selected));
    if (i === state.selected && b !== document.activeElement) {  // inside of the list only: the page stays where it is
      const list = get("detections"), top = b.offsetTop - list.offsetTop;
      if (list.scrollHeight > list.clientHeight)
        list.scrollTop = Math.min(top, Math.max(list.scrollTop, top + b.offsetHeight - list.clientHeight));
    }
  });
  describe();
  draw();
  explain();
}
function release() {
  state.selected = -1; state.pinned = false;
  get("detections").querySelectorAll("button").forEach(b => b.setAttribute("aria-pressed", "false"));
  draw();
}
function under(event) {
  const frame = canvas.getBoundingClientRect();
  if (!state.found) return -1;
  const x = (event.clientX - frame.left) / frame.width * state.found.width;
  const y = (event.clientY - frame.top) / frame.height * state.found.height;
  let best = -1, least = Infinity;  // the smallest box under the pointer
  visible().forEach(({ box_xyxy: [x0, y0, x1, y1] }, i) => {
    const area = (x1 - x0) * (y1 - y0);
    if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && area < least) { best = i; least = area; }
  });
  return best;
}
canvas.addEventListener("pointermove", event => {
  if (event.pointerType !== "mouse" || state.pinned) return;
  const index = under(event);
  if (index === state.selected) return;
  if (index >= 0) select(index, false); else release();
});
canvas.addEventListener("pointerleave", () => { if (!state.pinned && state.selected >= 0) { release(); announce(); } });
canvas.addEventListener("click", event => {
  const index = under(event);
  if (index >= 0) select(index, true); else { release(); announce(); }
});
canvas.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === "Escape") { release(); announce(); return; }
  if (!step || !visible().length) return;
  event.preventDefault();
  select(state.selected < 0 && step < 0 ? -1 : state.selected + step, true);
});
get("file").addEventListener("change", event => {
  const [file] = event.target.files;
  if (file) detect(file);
  event.target.value = "";  // the same file again is a change too
});
for (const kind of ["dragover", "dragenter"])
  document.addEventListener(kind, event => { event.preventDefault(); get("stage").classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) get("stage").classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  get("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) detect(file); else complain("Drop a file: a picture of another page has to be saved first.");
});
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(each => each.type.startsWith("image/"));
  if (file) detect(file);
});
function rechosen() { state.selected = -1; state.pinned = false; showValues(); fill(); }
get("threshold").addEventListener("input", () => { get("own").checked = false; rechosen(); });
get("own").addEventListener("input", rechosen);
for (const id of ["threshold", "own"]) get(id).addEventListener("change", () => state.found && announce());
for (const id of ["layer", "weight", "history", "show-look"])
  get(id).addEventListener("input", () => { showValues(); draw(); describe(); });
function showValues() {
  const texts = { threshold: isOwn() ? "by class" : threshold().toFixed(2) };
  if (state.explanation) {
    texts.layer = `${get("layer").value} of ${get("layer").max}`;
    texts.weight = (get("weight").value / 100 * state.explanation.data.most).toPrecision(2);
  }
  for (const [id, text] of Object.entries(texts)) {
    get(id).nextElementSibling.textContent = text;
    get(id).setAttribute("aria-valuetext", text);
  }
}
get("download").addEventListener("click", () => {
  const answer = { model: state.model ? state.model.name : null, threshold: isOwn() ? state.model.thresholds : threshold(), ...state.found, detections: visible() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" }));
  link.download = `${(state.found.file_name || "picture").replace(/\.[^.]*$/, "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

// ------------------------------------------------------------ camera

let stream = null;
get("camera").addEventListener("click", async () => {
  complain("");
  if (!navigator.mediaDevices) {
    complain("The camera needs https:// or localhost.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch (error) {
    complain(error.name === "NotAllowedError" ? "The camera was not allowed." : "There is no camera here.");
    return;
  }
  state.run++;  // whatever is still under way is no longer wanted
  working(false);
  Object.assign(state, { file: null, found: null, explanation: null, selected: -1 });
  get("download").disabled = true;
  get("video").srcObject = stream;
  get("video").hidden = get("camera-tools").hidden = false;
  picture.hidden = canvas.hidden = true;
  get("stage").dataset.empty = "false";
  await get("video").play();
  get("stage").style.setProperty("--shape", get("video").videoWidth / get("video").videoHeight);
  say("The camera is on.");
  fill();
  get("shoot").focus();
});
function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach(track => track.stop());
  stream = null;
  get("video").srcObject = null;
  get("video").hidden = get("camera-tools").hidden = true;
}
get("camera-stop").addEventListener("click", () => {
  stopCamera();
  get("stage").dataset.empty = "true";
  say("");
  get("camera").focus();
});
get("shoot").addEventListener("click", () => {
  const video = get("video"), still = document.createElement("canvas");
  still.width = video.videoWidth; still.height = video.videoHeight;
  still.getContext("2d").drawImage(video, 0, 0);
  still.toBlob(blob => detect(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.95);
});

// ------------------------------------------------------------ token, start

function askForToken() {
  get("token-form").hidden = false;
  get("token").focus();
}
get("token-form").addEventListener("submit", async event => {
  event.preventDefault();
  state.token = get("token").value.trim();  // kept in this page's memory, nowhere else
  complain("");
  if (await start()) {
    get("token-form").hidden = true;
    get("token").value = "";
    if (state.file) detect(state.file);
  }
});
async function start() {
  try {
    state.model = await ask("v1/model");
    offerOwn();
    get("title").textContent = `Find objects with ${state.model.name}`;
    document.title = `${state.model.name}: find objects`;
    const names = state.model.classes.filter(Boolean);
    get("hint").textContent = `Drop a picture anywhere, paste one, choose a file, or use the camera. It knows `
      + `${names.length === 1 ? "one class" : `${names.length} classes`}: ${names.slice(0, 8).join(", ")}${names.length > 8 ? ", …" : ""}.`;
    return true;
  } catch (error) {
    complain(sentence(error));
    if (error.kind === "unauthorized") askForToken();
    return false;
  }
}
new ResizeObserver(draw).observe(get("stage"));
showValues();
fill();
start().then(() => { document.body.dataset.ready = "true"; });
