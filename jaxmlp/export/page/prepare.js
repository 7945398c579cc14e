// A drawing as MNIST prepared its digits. The same as jaxmlp/prepare.py, step by step; a test compares them.

const SIDE = 28, BOX = 20;

/**
 * 28 x 28 pixels of 0 to 255, or null where there is no ink.
 * `ink` holds rows of `width` numbers, 0 for none.
 */
function prepare(ink, width) {
  const box = boundingBox(ink, width);
  if (!box) return null;
  const [top, left, height, breadth] = box;
  const larger = Math.max(height, breadth);
  const rows = Math.max(1, Math.floor((BOX * height) / larger + 0.5));
  const columns = Math.max(1, Math.floor((BOX * breadth) / larger + 0.5));
  const down = overlaps(height, rows), across = overlaps(breadth, columns);
  const digit = new Float64Array(rows * columns);
  for (const [row, y, part] of down)
    for (const [column, x, share] of across)
      digit[row * columns + column] += part * share * ink[(top + y) * width + left + x];
  let mass = 0, moment = [0, 0];
  digit.forEach((value, i) => {
    mass += value;
    moment[0] += value * Math.floor(i / columns);
    moment[1] += value * (i % columns);
  });
  const [firstRow, firstColumn] = [rows, columns].map((size, axis) =>
    Math.min(Math.max(SIDE / 2 - Math.floor(moment[axis] / mass + 0.5), 0), SIDE - size));
  const pixels = new Uint8Array(SIDE * SIDE);
  digit.forEach((value, i) => {
    const row = firstRow + Math.floor(i / columns), column = firstColumn + (i % columns);
    pixels[row * SIDE + column] = Math.floor(value + 0.5);
  });
  return pixels;
}

/** [top, left, height, breadth] of what is not 0. */
function boundingBox(ink, width) {
  let top = Infinity, left = Infinity, bottom = -1, right = -1;
  for (let i = 0; i < ink.length; i++) {
    if (!ink[i]) continue;
    const y = Math.floor(i / width), x = i % width;
    top = Math.min(top, y), bottom = Math.max(bottom, y), left = Math.min(left, x), right = Math.max(right, x);
  }
  return bottom < 0 ? null : [top, left, bottom - top + 1, right - left + 1];
}

/** [to, from, part]: how much of each of `wide` cells is in each of `narrow` ones of the same length together. */
function overlaps(wide, narrow) {
  const found = [], step = wide / narrow;
  for (let to = 0; to < narrow; to++) {
    const start = to * step, end = (to + 1) * step;
    for (let from = Math.floor(start); from < Math.min(end, wide); from++) {
      const part = (Math.min(end, from + 1) - Math.max(start, from)) / step;
      if (part > 0) found.push([to, from, part]);
    }
  }
  return found;
}
