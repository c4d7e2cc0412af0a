// Maps of an image: bytes to colours on a canvas.

function readBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const palettes = {
  sequential: readBytes(data.colourmaps.sequential),
  diverging: readBytes(data.colourmaps.diverging),
};
const kinds = {
  attention: { name: "attention (mean over heads)", palette: "sequential", unit: "%" },
  norm: { name: "value-weighted, ‖c‖", palette: "sequential", unit: "" },
  share: { name: "signed share of the output", palette: "diverging", unit: "%" },
  heads: { name: "attention of head", palette: "sequential", unit: "%" },
};

// The bytes of one map of an image; `which` is one of the kinds, or the number of a head.
function openMap(image, which) {
  const kind = which in kinds ? which : "heads";
  const head = kind === "heads" ? Number(which) : 0;
  const [rows, columnsOfGrid] = image.grid;
  const { data: text, scale } = image.maps[kind];
  const bytes = readBytes(text).subarray(head * rows * columnsOfGrid, (head + 1) * rows * columnsOfGrid);
  const signed = kind === "share";
  const largest = scale[head];
  const name = signed && image.maps.share.raw ? `raw ${kinds.share.name}` : kinds[kind].name;
  return {
    bytes,
    rows,
    columns: columnsOfGrid,
    largest,
    signed,
    palette: palettes[kinds[kind].palette],
    valueAt: (patch) => (signed ? ((bytes[patch] - 128) / 127) * largest : (bytes[patch] / 255) * largest),
    tell: (value) => (kinds[kind].unit === "%" ? `${tell(100 * value)} %` : tell(value)),
    name: kind === "heads" ? `attention of head ${head}` : name,
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
  return image.maps.heads.scale.length;
}

function makeImage(image) {
  const source = `data:image/jpeg;base64,${data.thumbnails[image.thumbnail]}`;
  return make("img", { src: source, alt: "", decoding: "async", draggable: false });
}
