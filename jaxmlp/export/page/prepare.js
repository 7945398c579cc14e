// Prepares a drawing as MNIST prepared its digits. The same steps as jaxmlp/prepare.py; a test compares them.

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

/** Box [top, left, height, breadth] of the pixels that are not 0. */
function boundingBox(ink, width) {
  let top = Infinity, left = Infinity, bottom = -1, right = -1;
  for (let i = 0; i < ink.length; i++) {
    if (!ink[i]) continue;
    const y = Math.floor(i / width), x = i % width;
    top = Math.min(top, y), bottom = Math.max(bottom, y), left = Math.min(left, x), right = Math.max(right, x);
  }
  return bottom < 0 ? null : [top, left, bottom - top + 1, right - left + 1];
}

const APART = 0.25, AS_LARGE = 0.2, AS_HIGH = 0.5;

/** Whether the ink, as `prepare` takes it, looks like more than one digit. */
function showsSeveral(ink, width) {
  const [one, two] = shapes(ink, width).sort((a, b) => b.size - a.size);
  if (!two) return false;
  const apart = [[0, 2], [1, 3]].some(([start, end]) => {
    const shared = Math.min(one.box[end], two.box[end]) - Math.max(one.box[start], two.box[start]);
    return shared / Math.min(...[one, two].map(({ box }) => box[end] - box[start])) < APART;
  });
  const [low, high] = [one, two].map(({ box }) => box[2] - box[0]).sort((a, b) => a - b);
  return apart && two.size > AS_LARGE * one.size && low > AS_HIGH * high;
}

/** Connected shapes of ink: the pixels of each and its box [top, left, bottom, right]. */
function shapes(ink, width) {
  const found = [], left = Uint8Array.from(ink, (value) => value > 64);
  for (let start = 0; start < left.length; start++) {
    if (!left[start]) continue;
    const shape = { size: 0, box: [Infinity, Infinity, -1, -1] }, queue = [start];
    left[start] = 0;
    while (queue.length) {
      const i = queue.pop(), y = Math.floor(i / width), x = i % width, [top, first, bottom, last] = shape.box;
      shape.size++;
      shape.box = [Math.min(top, y), Math.min(first, x), Math.max(bottom, y + 1), Math.max(last, x + 1)];
      for (let down = -1; down <= 1; down++)
        for (let across = -1; across <= 1; across++) {
          const near = i + down * width + across;
          if (x + across < 0 || x + across >= width || !left[near]) continue;
          left[near] = 0;
          queue.push(near);
        }
    }
    found.push(shape);
  }
  return found;
}

/** [to, from, part]: fraction of each of the `narrow` cells that each of the `wide` cells covers. Both span the same length. */
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
