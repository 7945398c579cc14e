// The network: the run's weights applied to 784 pixels. Every sum is in double precision.

const SELU = 1.0507009873554805, SELU_ALPHA = 1.6732632423543772;
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  tanh: Math.tanh,
  sigmoid,
  gelu: (x) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  selu: (x) => SELU * (x > 0 ? x : SELU_ALPHA * Math.expm1(x)),
  silu: (x) => x * sigmoid(x),
  softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))),
  linear: (x) => x,
};

/** The layers with their arrays, decoded from the base64 text of all kernels and biases: float32, little-endian. */
function readLayers(layers, base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  let start = 0;
  const take = (count) => new Float32Array(bytes.buffer, (start += 4 * count) - 4 * count, count);
  return layers.map((layer) => ({ ...layer, kernel: take(layer.inputs * layer.units), bias: take(layer.units) }));
}

/** Output of each layer, first to last. The last output is the probabilities of the classes. */
function forward(layers, pixels) {
  const found = [];
  let inputs = pixels;
  for (const { kernel, bias, units, activation, scale } of layers) {
    const sums = Float64Array.from(bias);
    for (let i = 0; i < inputs.length; i++) {
      const input = inputs[i] * scale;
      if (input === 0) continue;
      for (let unit = 0, k = i * units; unit < units; unit++, k++) sums[unit] += input * kernel[k];
    }
    inputs = sums.map(ACTIVATIONS[activation]);
    found.push(inputs);
  }
  found[found.length - 1] = softmax(inputs);
  return found;
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}
