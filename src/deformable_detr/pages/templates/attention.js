"use strict";
// What every page that shows an explanation shares: numbers out of its data, points and boxes onto a canvas.
// `data` is what page_data of explain/page.py returns; `all`: [{x, y, weight, head, level}] in pixels of the picture.

function numbers(text) {  // 16 bits each, little endian, base64
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
}
function unpack(part) {
  return part && { layers: part.layers, locations: numbers(part.locations), weights: numbers(part.weights) };
}
const coordinate = value => value / 65535 * 2 - 0.5;  // from half a picture before it to half a one after
const pointsPerLayer = data => data.heads * data.levels * data.points;

function look(data, part, row, layer) {  // where one row looked in one layer
  const found = [], [imageHeight, imageWidth] = data.image_size, perLayer = pointsPerLayer(data);
  const start = (row * part.layers + layer) * perLayer;
  for (let i = 0; i < perLayer; i++) {
    const point = i % data.points, level = Math.floor(i / data.points) % data.levels;
    let x, y;
    if (data.grid) {
      x = (point % data.grid[1] + 0.5) / data.grid[1];
      y = (Math.floor(point / data.grid[1]) + 0.5) / data.grid[0];
    } else {
      x = coordinate(part.locations[2 * (start + i)]);
      y = coordinate(part.locations[2 * (start + i) + 1]);
    }
    found.push({ x: x * imageWidth, y: y * imageHeight, level, weight: part.weights[start + i] / 65535 * data.most,
                 head: Math.floor(i / data.points / data.levels) });
  }
  return found;
}
function shareInside(data, all, [x0, y0, x1, y1]) {  // of the weight, 0 to 1
  const [halfWidth, halfHeight] = data.grid  // a cell that the box touches counts whole
    ? [data.image_size[1] / data.grid[1] / 2, data.image_size[0] / data.grid[0] / 2] : [0, 0];
  const inside = all.filter(p => p.x >= x0 - halfWidth && p.x <= x1 + halfWidth
    && p.y >= y0 - halfHeight && p.y <= y1 + halfHeight);
  return Math.min(1, inside.reduce((sum, p) => sum + p.weight, 0) / data.heads);
}

function box(pen, [x0, y0, x1, y1], scale, style, width, dash = []) {
  pen.strokeStyle = style; pen.lineWidth = width; pen.setLineDash(dash);
  pen.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
  pen.setLineDash([]);
}
function boxesOfLayers(pen, detection, layer, scale, history) {  // that layer's box, where it looked from, the others
  if (detection.proposal) box(pen, detection.proposal, scale, "#ffd21f", 1.5, [6, 4]);
  detection.boxes.forEach((b, i) => {
    if (i === layer) box(pen, b, scale, "#35e055", 3);
    else if (history) box(pen, b, scale, `rgba(53,224,85,${0.25 + 0.45 * i / detection.boxes.length})`, 1.5);
  });
  if (detection.references.length) cross(pen, detection.references[layer], scale);
}
function cross(pen, [x, y], scale) {
  for (const [style, width] of [["#000", 5], ["#35e055", 2.5]]) {
    pen.strokeStyle = style; pen.lineWidth = width; pen.beginPath();
    pen.moveTo(x * scale - 8, y * scale); pen.lineTo(x * scale + 8, y * scale);
    pen.moveTo(x * scale, y * scale - 8); pen.lineTo(x * scale, y * scale + 8); pen.stroke();
  }
}
function meanOverHeads(data, all) {
  // Cells lie on top of each other, points do not.
  return all.slice(0, data.points).map((cell, i) => ({ ...cell, weight: Array.from(
    { length: data.heads }, (_, head) => all[head * data.points + i].weight).reduce((a, b) => a + b) / data.heads }));
}
function drawPoints(pen, data, all, scale, { head = 0, level = 0, least = 0 } = {}) {  // 0: all; returns those shown
  const [imageHeight, imageWidth] = data.image_size;
  const colour = weight => data.colours[Math.min(data.colours.length - 1,
    Math.floor(weight / data.most * data.colours.length))];
  const shown = (data.grid && !head ? meanOverHeads(data, all) : all).filter(p => (!head || p.head === head - 1)
    && (!level || p.level === level - 1) && p.weight >= least).sort((a, b) => a.weight - b.weight);
  for (const p of shown) {
    pen.fillStyle = colour(p.weight);
    if (data.grid) {
      const width = imageWidth / data.grid[1] * scale, height = imageHeight / data.grid[0] * scale;
      pen.globalAlpha = 0.7 * Math.sqrt(p.weight / data.most);
      pen.fillRect(p.x * scale - width / 2, p.y * scale - height / 2, width, height);
    } else {
      pen.beginPath();
      pen.arc(p.x * scale, p.y * scale, 2 + 4 * Math.sqrt(Math.min(1, p.weight / data.most)), 0, 7);
      pen.fill(); pen.strokeStyle = "rgba(0,0,0,.6)"; pen.lineWidth = 0.8; pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  return shown;
}
function colourBar(data) {
  return `linear-gradient(to right, ${data.colours.join(",")})`;
}
