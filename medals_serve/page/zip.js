/* Packs files into one ZIP file, without compressing them: how a DICOM folder is sent. */

const LARGEST_BYTES = 0xffffffff;
const LARGEST_COUNT = 0xffff;
const UTF_8_NAMES = 0x0800;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/* `files` are {path, file}. Their bytes stay where they are (on disk) until the ZIP is sent. */
export async function zipped(files) {
  const total = files.reduce((sum, { file }) => sum + file.size, 0);
  if (files.length > LARGEST_COUNT || total > LARGEST_BYTES - 1e8) {
    throw new RangeError(
      `${files.length} files of ${Math.round(total / 1e6)} MB are too many for one ZIP file: ` +
      "choose the folder of one series");
  }
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { path, file } of files) {
    const name = new TextEncoder().encode(path);
    const common = fields(
      [2, 20], [2, UTF_8_NAMES], [2, 0], [2, 0], [2, 0x21], // version, flags, stored, 1980-01-01
      [4, crc32(new Uint8Array(await file.arrayBuffer()))], [4, file.size], [4, file.size],
      [2, name.length], [2, 0]);
    const header = [fields([4, 0x04034b50]), common, name];
    parts.push(...header, file);
    directory.push(
      fields([4, 0x02014b50], [2, 20]), common,
      fields([2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), name);
    offset += header.reduce((sum, bytes) => sum + bytes.length, 0) + file.size;
  }
  const size = directory.reduce((sum, bytes) => sum + bytes.length, 0);
  const end = fields(
    [4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset],
    [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function fields(...entries) {
  const bytes = new Uint8Array(entries.reduce((sum, [size]) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [size, value] of entries) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return bytes;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
