// Maps of an image: bytes to colours on a canvas.

function readBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const palettes = {
  sequential: readBytes(data.colourmaps.sequential),
  diverging: readBytes(data.colourmaps.diverging),
};

// What a map lies on: the image as its model saw it.
const viewOf = (image, which) => ({ ...image, ...image.maps[which]?.view });

// One map of an image; `which` is its name, or the number of a head. No name begins with a digit.
function openMap(image, which) {
  const isHead = !(which in image.maps);
  const map = image.maps[isHead ? image.heads.map : which];
  const { data: text, scale } = isHead ? image.heads : map;
  const head = isHead ? Number(which) : 0;
  const [rows, columnsOfGrid] = viewOf(image, which).grid;
  const bytes = readBytes(text).subarray(head * rows * columnsOfGrid, (head + 1) * rows * columnsOfGrid);
  const { signed, part } = map;
  const largest = scale[head];
  return {
    bytes,
    rows,
    columns: columnsOfGrid,
    largest,
    signed,
    palette: signed ? palettes.diverging : palettes.sequential,
    valueAt: (patch) => (signed ? ((bytes[patch] - 128) / 127) * largest : (bytes[patch] / 255) * largest),
    tell: (value) => (part ? `${tell(100 * value)} %` : tell(value)),
    name: isHead ? `${map.title} of head ${head}` : map.title,
    unit: [map.unit, map.target && `target ${map.target}`].filter(Boolean).join(", "),
    told: isHead ? "" : map.told,
  };
}

function paint(canvas, map) {
  canvas.width = map.columns;
  canvas.height = map.rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.columns, map.rows);
  map.bytes.forEach((level, patch) => {
    image.data.set(map.palette.subarray(3 * level, 3 * level + 3), 4 * patch);
    image.data[4 * patch + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

function countHeads(image) {
  return image.heads === null ? 0 : image.heads.scale.length;
}

function makeImage(image) {
  const source = `data:image/jpeg;base64,${data.thumbnails[image.thumbnail]}`;
  return make("img", { src: source, alt: "", decoding: "async", draggable: false });
}
