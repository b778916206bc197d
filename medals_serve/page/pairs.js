/* Scans of two files, a header and its voxels, joined to the one file that the service takes. */

const LARGEST_HEADER_BYTES = 1e6;

/* NIfTI-1 and -2: bytes of the header, where it says "ni1" or "ni2", what it says instead of one
file, and the field with the first voxel's place. */
const NIFTI = [
  { bytes: 348, magicAt: 344, pair: 0x6e693100, single: 0x6e2b3100, placeAt: 108, is64Bit: false },
  { bytes: 540, magicAt: 4, pair: 0x6e693200, single: 0x6e2b3200, placeAt: 168, is64Bit: true },
];

/* By how a header's name ends: how that of what is made does, and how it is made of the header and
`beside`, which gives the first of some names that lies beside it. A header that names no other
file makes null. */
const KINDS = [
  { ending: /\.nhdr$/i, becomes: ".nrrd", join: joinNrrd },
  { ending: /\.mhd$/i, becomes: ".mha", join: joinMetaImage },
  { ending: /\.hdr(\.gz)?$/i, becomes: ".nii", join: joinNifti },
];

/* Returns `files`, each {path, file}, with one in place of every header and its voxels. A header
that comes alone stays as it is: the service says what is missing. */
export async function pairsJoined(files) {
  const left = new Map(files.map((each) => [each.path, each]));
  if (left.size === 1) return files;
  for (const { path, file } of files) {
    const kind = KINDS.find(({ ending }) => ending.test(path));
    if (!kind || file.size > LARGEST_HEADER_BYTES) continue;
    const folder = path.slice(0, path.lastIndexOf("/") + 1);
    const taken = [];
    const parts = await kind.join(file, (...names) => {
      const found = names.map((name) => folder + name).find((each) => left.has(each));
      if (found === undefined) {
        throw new Error(`${file.name} keeps its voxels in ${names[0]}, which is not among these `
          + "files: choose both.");
      }
      taken.push(found);
      return left.get(found).file;
    });
    if (parts === null) continue;
    const name = file.name.replace(kind.ending, kind.becomes);
    left.set(path, { path: folder + name, file: new File(parts, name) });
    taken.forEach((each) => left.delete(each));
  }
  return [...left.values()];
}

/* The header's fields but the one that names a file, an empty line, and the voxels. */
async function joinNrrd(file, beside) {
  const lines = (await file.text()).split(/\r?\n/);
  const empty = lines.indexOf("");
  const fields = empty < 0 ? lines : lines.slice(0, empty);
  const elsewhere = fields.findIndex((line) => /^data ?file:(?!=)/i.test(line));
  if (elsewhere < 0) return null;
  const name = oneName(file, fields.splice(elsewhere, 1)[0].replace(/^.*?:/, "").trim());
  return [`${fields.join("\n")}\n\n`, beside(name)];
}

/* The header with its voxels behind it, without what is to be skipped in a file of their own. */
async function joinMetaImage(file, beside) {
  const lines = (await file.text()).split(/\r?\n/);
  const valueOf = (key) => {
    const at = lines.findIndex((line) => line.split("=")[0].trim().toLowerCase() === key);
    return at < 0 ? null : lines.splice(at, 1)[0].replace(/^.*?=/, "").trim();
  };
  const elsewhere = valueOf("elementdatafile");
  if (elsewhere === null || elsewhere === "LOCAL") return null;
  const voxels = beside(oneName(file, elsewhere));
  const skipped = Number(valueOf("headersize") ?? 0);
  const fields = lines.filter((line) => line !== "");
  if (skipped < 0) fields.push("HeaderSize = -1"); // the voxels are the last bytes, also here
  return [[...fields, "ElementDataFile = LOCAL", ""].join("\n"),
    voxels.slice(Math.max(skipped, 0))];
}

/* The header, which also says where in their file the voxels begin, and the voxels. */
async function joinNifti(file, beside) {
  const whole = await (await unpacked(file)).arrayBuffer();
  const view = new DataView(whole);
  const kind = NIFTI.find(({ bytes, magicAt, pair }) => (
    whole.byteLength >= bytes && view.getUint32(magicAt) === pair));
  if (!kind) return null;
  const header = new DataView(whole.slice(0, kind.bytes));
  const isLittle = header.getInt32(0, true) === kind.bytes;
  const extensions = new Uint8Array(4); // none
  const start = kind.bytes + extensions.length;
  header.setUint32(kind.magicAt, kind.single);
  if (kind.is64Bit) {
    const place = header.getBigInt64(kind.placeAt, isLittle);
    header.setBigInt64(kind.placeAt, place + BigInt(start), isLittle);
  } else {
    header.setFloat32(kind.placeAt, header.getFloat32(kind.placeAt, isLittle) + start, isLittle);
  }
  const name = file.name.replace(/\.hdr(\.gz)?$/i, "");
  const voxels = beside(...[".img", ".img.gz", ".IMG"].map((ending) => name + ending));
  return [header.buffer, extensions, await unpacked(voxels)];
}

function oneName(file, value) {
  if (!/^LIST\b|%\d*d/.test(value)) return value.replace(/^(\.\/)+/, "");
  throw new Error(`${file.name} keeps its voxels in several files, which the service doesn't take: `
    + "save the scan as one, such as .nrrd, .mha or .nii.gz.");
}

/* What a file holds, where it is gzipped without that. */
async function unpacked(file) {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  if (start[0] !== 0x1f || start[1] !== 0x8b) return file;
  const stream = file.stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).blob();
}
