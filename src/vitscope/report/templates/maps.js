// Maps of an image: bytes to colours on a canvas.

function readBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const sequential = readBytes(data.sequential);
const diverging = readBytes(data.diverging);

const decoded = new WeakMap();

function bytesOf(source) {
  if (!decoded.has(source)) decoded.set(source, readBytes(source.data));
  return decoded.get(source);
}

// What a map lies on: the image as its model saw it.
const viewOf = (image, which) => ({ ...image, ...image.maps[which]?.view });

const headsPerLayer = ({ layers }) => (layers === null ? 0 : layers.scale.length / layers.count);

// One map of an image; `which` is its name, the number of a head, or “layer.head”. No name begins with a digit.
function openMap(image, which) {
  const isNamed = which in image.maps;
  const isLayered = which.includes(".");
  const [head, layer] = isNamed ? [0, 0] : which.split(".").map(Number).reverse();
  const source = isNamed ? image.maps[which] : isLayered ? image.layers : image.heads;
  const { title, unit, target, signed, part, told } = source;
  const place = isLayered ? layer * headsPerLayer(image) + head : head;
  const [rows, across] = viewOf(image, which).grid;
  const bytes = bytesOf(source).subarray(place * rows * across, (place + 1) * rows * across);
  const largest = source.scale[place];
  return {
    bytes,
    rows,
    across,
    largest,
    signed,
    told,
    palette: signed ? diverging : sequential,
    valueAt: (patch) => (signed ? ((bytes[patch] - 128) / 127) * largest : (bytes[patch] / 255) * largest),
    tell: (value) => (part ? `${tell(100 * value)} %` : tell(value)),
    name: [title, !isNamed && ` of head ${head}`, isLayered && ` in layer ${layer}`].filter(Boolean).join(""),
    unit: [unit, target && `target ${target}`].filter(Boolean).join(", "),
  };
}

// A map with a pixel for each patch.
function paint({ bytes, rows, across, palette }, canvas = make("canvas")) {
  Object.assign(canvas, { width: across, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(across, rows);
  bytes.forEach((level, patch) => {
    image.data.set(palette.subarray(3 * level, 3 * level + 3), 4 * patch);
    image.data[4 * patch + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

// A map to lie over its image, in percent.
function makeOverlay(map, mix) {
  const canvas = paint(map);
  canvas.style.opacity = `${mix}%`;
  return canvas;
}

function makeImage({ thumbnail }) {
  const src = `data:image/jpeg;base64,${data.thumbnails[thumbnail]}`;
  return make("img", { src, alt: "", decoding: "async", draggable: false });
}
