// The page: takes strokes, and shows the network's answer at every movement.

const PIXELS = 280, PEN = 22;
const SAMPLES = [
  "M52 14C28 12 22 84 48 86C76 88 78 16 52 14",
  "M56 14L46 86",
  "M28 32C30 8 72 8 70 34C68 52 40 66 28 84L74 82",
  "M30 20C50 8 72 18 66 34C62 46 50 48 44 48C58 48 74 54 70 70C66 88 40 90 28 78",
  "M34 14L28 54L72 50M64 16L58 88",
  "M68 16L38 16L34 46C52 38 72 46 70 64C68 84 42 90 30 76",
  "M60 12C40 26 28 50 32 68C36 88 64 88 66 68C66 52 44 50 34 66",
  "M28 20L72 16L48 86",
  "M66 26C60 10 32 14 36 32C40 46 68 52 66 70C62 90 32 88 34 70C36 54 66 44 66 26",
  "M66 30C58 12 30 18 34 38C38 54 64 48 66 30L58 86",
];

const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
const layers = readLayers(model.layers, $("weights").textContent);
const board = $("board"), pen = board.getContext("2d");
const raster = Object.assign(document.createElement("canvas"), { width: PIXELS, height: PIXELS });
const ink = raster.getContext("2d", { willReadFrequently: true });
const calm = matchMedia("(prefers-reduced-motion: reduce)"), dark = matchMedia("(prefers-color-scheme: dark)");

let strokes = []; // Each a list of points [x, y], in fractions of the board's width.
let drawing = null; // The pointer that draws.
let sample = 0; // Number of sample digits started; an older sample then stops.
let activations = null;

/* ---- drawing ---- */

function trace(context, size, points) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = (PEN / PIXELS) * size;
  context.beginPath();
  context.moveTo(points[0][0] * size, points[0][1] * size);
  for (const [x, y] of points.length > 1 ? points.slice(1) : points) context.lineTo(x * size, y * size);
  context.stroke();
}

let pending = false;
function changed() {
  document.body.classList.toggle("drawn", strokes.length > 0);
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; redraw(); });
}

function redraw() {
  pen.clearRect(0, 0, board.width, board.height);
  pen.strokeStyle = getComputedStyle(board).getPropertyValue("--ink");
  ink.fillStyle = "#000", ink.strokeStyle = "#fff";
  ink.fillRect(0, 0, PIXELS, PIXELS);
  for (const points of strokes) trace(pen, board.width, points), trace(ink, PIXELS, points);
  const drawn = inked();
  show(prepare(drawn, PIXELS), showsSeveral(drawn, PIXELS));
}

/** The raster's brightness, row by row. */
function inked() {
  const { data } = ink.getImageData(0, 0, PIXELS, PIXELS);
  return Uint8Array.from({ length: PIXELS * PIXELS }, (_, i) => data[4 * i]);
}

function place(event) {
  const { left, top, width } = board.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / width];
}

board.addEventListener("pointerdown", (event) => {
  if (drawing !== null || event.button > 0) return;
  sample++;
  drawing = event.pointerId;
  board.setPointerCapture(drawing);
  strokes.push([place(event)]);
  changed();
});
board.addEventListener("pointermove", (event) => {
  if (event.pointerId !== drawing) return;
  const events = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1).push(...(events.length ? events : [event]).map(place));
  changed();
});
for (const end of ["pointerup", "pointercancel"])
  board.addEventListener(end, (event) => { if (event.pointerId === drawing) drawing = null; });

function clear() { sample++; strokes = []; drawing = null; changed(); }
function undo() { sample++; strokes.pop(); drawing = null; changed(); }
$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", undo);

/* ---- sample digits ---- */

/** The strokes of a path of M, L and C, in steps of about one percent of the board. */
function pathStrokes(text) {
  return text.split(/(?=M)/).map((part) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", part);
    const length = path.getTotalLength(), steps = Math.ceil(length);
    return Array.from({ length: steps + 1 }, (_, i) => {
      const { x, y } = path.getPointAtLength((length * i) / steps);
      return [x / 100, y / 100];
    });
  });
}

function drawSample(digit) {
  clear();
  const turn = sample, left = pathStrokes(SAMPLES[digit]);
  if (calm.matches) { strokes = left; changed(); return; }
  const step = () => {
    if (turn !== sample || !left.length) return;
    if (strokes.at(-1)?.whole !== left[0]) strokes.push(Object.assign([], { whole: left[0] }));
    strokes.at(-1).push(...left[0].slice(strokes.at(-1).length, strokes.at(-1).length + 4));
    if (strokes.at(-1).length === left[0].length) left.shift();
    changed();
    requestAnimationFrame(step);
  };
  step();
}

SAMPLES.forEach((_, digit) => {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: digit });
  button.setAttribute("aria-label", `Draw a sample ${digit}`);
  button.addEventListener("click", () => drawSample(digit));
  $("samples").append(button);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.key === "z") { event.preventDefault(); undo(); }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[0-9]$/.test(event.key)) drawSample(Number(event.key));
  if (["Escape", "Delete", "Backspace"].includes(event.key)) clear();
});

/* ---- the network's answer ---- */

const bars = Array.from({ length: model.classes }, (_, label) => {
  const item = document.createElement("li");
  item.innerHTML = `<span>${label}</span><span class="bar" aria-hidden="true"><i></i></span><span></span>`;
  $("bars").append(item);
  return item;
});
const percent = (part) => `${part > 0.999 ? "> 99.9" : (100 * part).toFixed(1)} %`;

function show(pixels, several = false) {
  const picture = new ImageData(28, 28);
  pixels?.forEach((value, i) => picture.data.set([value, value, value, 255], 4 * i));
  $("prepared").getContext("2d").putImageData(picture, 0, 0);
  activations = pixels && forward(layers, pixels);
  const probabilities = activations?.at(-1);
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  bars.forEach((item, label) => {
    const part = probabilities?.[label] ?? 0;
    item.className = label === best ? "top" : "";
    item.querySelector("i").style.transform = `scaleX(${part})`;
    item.lastChild.textContent = probabilities ? percent(part) : "";
  });
  $("digit").textContent = probabilities ? best : "?";
  const sure = several ? "one digit at a time" : `${percent(probabilities?.[best])} sure`;
  $("sure").textContent = probabilities ? sure : "nothing yet";
  showUnits();
  const answer = several ? "This looks like more than one digit" : `Looks like ${best}, ${percent(probabilities?.[best])}`;
  say(probabilities ? answer : "The board is empty");
}

let saying;
/** Announce the answer to screen readers once the hand rests. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => {
    if ($("said").textContent === text) return;
    $("said").textContent = text;
    board.setAttribute("aria-label", strokes.length ? `Drawing board. ${text}` : "Drawing board, empty");
    $("prepared").setAttribute("aria-label", strokes.length ? "The drawing, 28 by 28 pixels" : "Nothing yet");
  }, 500);
}

/* ---- the first hidden layer ---- */

const first = layers.length > 1 ? layers[0] : null;
const columns = first && Math.ceil(Math.sqrt(first.units * (innerWidth < 860 ? 1.6 : 3)));
const CELL = 24, GAP = 4;
let picked = false; // Whether the user picked a unit. Until then the brightest unit is shown.

/** Blue for positive values, orange for negative, up to 1 in magnitude, on the theme's background. */
function colour(part, off) {
  const towards = part > 0 ? (dark.matches ? [110, 176, 255] : [31, 102, 214]) : dark.matches ? [255, 157, 63] : [180, 83, 9];
  const amount = Math.min(Math.abs(part), 1);
  return off.map((from, i) => Math.round(from + (towards[i] - from) * amount));
}
const off = () => getComputedStyle(board).getPropertyValue("--off").split(",").map(Number);

function showUnits() {
  if (!first) return;
  const canvas = $("units"), context = canvas.getContext("2d");
  const values = activations?.[0] ?? new Float64Array(first.units), background = off();
  const largest = Math.max(1e-9, ...values.map(Math.abs));
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (activations && !picked) $("unit").value = values.map(Math.abs).indexOf(largest);
  const chosen = Number($("unit").value);
  values.forEach((value, unit) => {
    const x = (unit % columns) * CELL + GAP, y = Math.floor(unit / columns) * CELL + GAP, side = CELL - GAP;
    context.fillStyle = `rgb(${colour(value / largest, background)})`;
    context.fillRect(x, y, side, side);
    if (unit !== chosen) return;
    context.strokeStyle = getComputedStyle(board).getPropertyValue("--ink"), context.lineWidth = GAP;
    context.strokeRect(x - GAP / 2, y - GAP / 2, side + GAP, side + GAP);
  });
  const lit = values.filter((value) => Math.abs(value) > largest / 10).length;
  canvas.setAttribute("aria-label", `The activations of ${first.units} units: ${activations ? lit : 0} lit`);
  showKernel(chosen, background);
}

/** The weights of the chosen unit, pixel by pixel. */
function showKernel(unit, background) {
  const weights = Array.from({ length: first.inputs }, (_, i) => first.kernel[i * first.units + unit]);
  const largest = Math.max(...weights.map(Math.abs));
  const picture = new ImageData(28, 28);
  weights.forEach((weight, i) => picture.data.set([...colour(weight / largest, background), 255], 4 * i));
  $("kernel").getContext("2d").putImageData(picture, 0, 0);
  $("kernel").setAttribute("aria-label", `The weights of unit ${unit}`);
  $("unit-number").textContent = unit;
}

function pick(unit) {
  picked = true;
  $("unit").value = unit;
  showUnits();
}

if (first) {
  Object.assign($("units"), { width: columns * CELL + GAP, height: Math.ceil(first.units / columns) * CELL + GAP });
  $("hidden-name").textContent = `First hidden layer: ${first.units} ${first.units === 1 ? "unit" : "units"}, ${first.activation}`;
  $("unit").max = first.units - 1;
  $("unit").addEventListener("input", () => pick($("unit").value));
  for (const kind of ["pointermove", "pointerdown"])
    $("units").addEventListener(kind, (event) => {
      const { left, top, width } = $("units").getBoundingClientRect(), cell = (width * CELL) / $("units").width;
      const column = Math.min(Math.floor((event.clientX - left) / cell), columns - 1);
      const unit = Math.floor((event.clientY - top) / cell) * columns + column;
      if (unit >= 0 && unit < first.units) pick(unit);
    });
} else $("hidden-layer").remove();

/* ---- begin ---- */

$("about").textContent = model.about;
dark.addEventListener("change", redraw);
redraw();
