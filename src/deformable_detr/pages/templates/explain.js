// Explores one explanation (attention.js draws): modes, sliders, keys and pointer.
const data = JSON.parse(document.getElementById("data").textContent);
const [imageHeight, imageWidth] = data.image_size;
const get = id => document.getElementById(id);
const canvas = get("overlay"), pen = canvas.getContext("2d");
const state = { mode: "decoder", selected: 0, pinned: false, place: [imageWidth / 2, imageHeight / 2] };
const SHOWABLE = data.grid ? data.points : pointsPerLayer(data);  // heads share the cells
const attention = { decoder: unpack(data.decoder), encoder: unpack(data.encoder) };

// ------------------------------------------------------------ drawing

function points(all, scale) {
  return drawPoints(pen, data, all, scale, { head: +get("head").value, level: +get("level").value,
                                             least: get("weight").value / 100 * data.most });
}
function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const scale = width / imageWidth;
  pen.fillStyle = "rgba(20,20,20,.28)"; pen.fillRect(0, 0, width, height);
  const said = state.mode === "decoder" ? drawDetections(scale) : drawEncoder(scale);
  get("status").textContent = said;
}
function drawDetections(scale) {
  data.detections.forEach((d, i) => i === state.selected
    || box(pen, d.boxes.at(-1), scale, "rgba(255,255,255,.75)", 1));
  const chosen = data.detections[state.selected];
  if (!chosen) return "Nothing was detected above the threshold.";
  const layer = +get("layer").value - 1;
  const all = look(data, attention.decoder, state.selected, layer), shown = points(all, scale);
  boxesOfLayers(pen, chosen, layer, scale, get("history").checked);
  const share = shareInside(data, all, chosen.boxes.at(-1));
  return `${chosen.name} ${chosen.score.toFixed(2)}, query ${chosen.query}: ${shown.length} of ${SHOWABLE} `
    + `${data.grid ? "cells" : "points"} shown; ${Math.round(100 * share)} % of layer ${layer + 1}'s `
    + `weight is inside the final box.`;
}
function drawEncoder(scale) {
  const from = +get("from").value - 1, layer = +get("layer").value - 1;
  let best = -1, least = Infinity;
  data.tokens.forEach(([level, x, y], i) => {
    const distance = (x - state.place[0]) ** 2 + (y - state.place[1]) ** 2;
    if (level === from && distance < least) { best = i; least = distance; }
  });
  const [, x, y] = data.tokens[best];
  const shown = points(look(data, attention.encoder, best, layer), scale);
  cross(pen, [x, y], scale);
  return `The token of level ${from + 1} at ${Math.round(x)}, ${Math.round(y)}, encoder layer ${layer + 1}: `
    + `${shown.length} of ${SHOWABLE} ${data.grid ? "cells" : "points"} shown.`;
}

// ------------------------------------------------------------ hands

function select(index, pinned) {
  if (!data.detections.length) return;
  state.selected = (index + data.detections.length) % data.detections.length;
  state.pinned = pinned;
  document.querySelectorAll("#detections button").forEach((b, i) => {
    b.setAttribute("aria-pressed", String(i === state.selected));
    if (i === state.selected) b.scrollIntoView({ block: "nearest" });
  });
  draw();
}
function at(event) {
  const frame = canvas.getBoundingClientRect();
  return [(event.clientX - frame.left) / frame.width * imageWidth,
          (event.clientY - frame.top) / frame.height * imageHeight];
}
function under([x, y]) {
  // The smallest box under the pointer, -1 where there is none.
  let best = -1, least = Infinity;
  data.detections.forEach(({ boxes }, i) => {
    const [x0, y0, x1, y1] = boxes.at(-1), area = (x1 - x0) * (y1 - y0);
    if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && area < least) { best = i; least = area; }
  });
  return best;
}
canvas.addEventListener("pointermove", event => {
  if (state.mode !== "decoder" || state.pinned) return;
  const index = under(at(event));
  if (index >= 0 && index !== state.selected) select(index, false);
});
canvas.addEventListener("click", event => {
  if (state.mode === "encoder") { state.place = at(event); draw(); return; }
  const index = under(at(event));
  if (index >= 0) select(index, true); else state.pinned = false;
});
canvas.addEventListener("keydown", event => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  if (state.mode === "decoder") { select(state.selected + step[0] + step[1], true); return; }
  state.place = [Math.min(imageWidth, Math.max(0, state.place[0] + step[0] * imageWidth / 40)),
                 Math.min(imageHeight, Math.max(0, state.place[1] + step[1] * imageHeight / 40))];
  draw();
});

function showValues() {
  const all = { head: "all", level: "all" };
  for (const id of ["layer", "head", "level", "weight", "from"]) {
    const value = +get(id).value;
    const text = id === "weight" ? (value / 100 * data.most).toPrecision(2)
      : all[id] && !value ? all[id] : `${value} of ${get(id).max}`;
    get(id).nextElementSibling.textContent = text;
    get(id).setAttribute("aria-valuetext", text);
  }
}
function setMode(mode) {
  state.mode = mode;
  get("layer").max = attention[mode].layers;
  get("layer").value = attention[mode].layers;
  get("from-row").hidden = mode !== "encoder";
  get("history").disabled = mode !== "decoder";
  get("hint").textContent = mode === "decoder"
    ? "Point at a box to see where the model looked for it; click to keep it. Arrow keys go from one to the next."
    : "Click a place to see where the encoder looks from there, or move it with the arrow keys.";
  showValues(); draw();
}
get("head").max = data.heads;
get("level").max = get("from").max = data.levels;
get("most").textContent = data.most.toPrecision(2);
get("bar").style.background = colourBar(data);
const number = data.detections.length;
get("count").textContent = `${number} detection${number === 1 ? "" : "s"} above ${data.thresholds}`;
data.detections.forEach((d, i) => {
  const button = document.createElement("button"), item = document.createElement("li");
  for (const [kind, text] of [["name", d.name], ["number", d.score.toFixed(2)]]) {
    const span = document.createElement("span");
    span.className = kind; span.textContent = text; button.append(span);
  }
  button.type = "button";
  button.addEventListener("pointerenter", () => state.mode === "decoder" && !state.pinned && select(i, false));
  button.addEventListener("focus", () => state.mode === "decoder" && select(i, state.pinned));
  button.addEventListener("click", () => {
    document.querySelector("input[value=decoder]").click(); select(i, true);
  });
  item.append(button); get("detections").append(item);
});
document.querySelectorAll("#modes input").forEach(input =>
  input.addEventListener("change", () => setMode(input.value)));
document.querySelector("input[value=encoder]").disabled = !attention.encoder;
for (const id of ["layer", "head", "level", "weight", "from", "history"])
  get(id).addEventListener("input", () => { showValues(); draw(); });
new ResizeObserver(draw).observe(get("stage"));
setMode("decoder");
select(0, false);
