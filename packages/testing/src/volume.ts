// The only place that writes a volume as the kubelet's atomic writer does (kubernetes, pkg/volume/util/atomic_writer.go): a directory
// named after the time, `..data` that points to it and is swapped by a rename, and a link for each file.
import { chmodSync, mkdirSync, mkdtempSync, readlinkSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** A file of a volume. */
export interface VolumeFile {
  readonly content: string;
  readonly mode: number;
}

/** Writes all files of a volume at once: a reader sees either the old set or the new one. Paths are relative to the volume. */
export function writeVolume(directory: string, files: ReadonlyMap<string, VolumeFile>, now: Date): void {
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const [day = '', time = ''] = now.toISOString().slice(0, 19).split('T');
  const stamp = `..${day.replaceAll('-', '_')}_${time.replaceAll(':', '_')}.`;
  const fresh = mkdtempSync(join(directory, stamp));
  chmodSync(fresh, 0o755);
  for (const [path, { content, mode }] of files) {
    const file = join(fresh, path);
    mkdirSync(dirname(file), { recursive: true, mode: 0o755 });
    writeFileSync(file, content);
    chmodSync(file, mode);
  }
  const data = join(directory, '..data');
  const stale = readLink(data);
  symlinkSync(fresh.slice(directory.length + 1), join(directory, '..data_tmp'));
  renameSync(join(directory, '..data_tmp'), data);
  for (const name of new Set([...files.keys()].map((path) => path.split('/')[0] ?? path))) {
    const link = join(directory, name);
    if (readLink(link) === undefined) symlinkSync(join('..data', name), link);
  }
  if (stale !== undefined) rmSync(join(directory, stale), { recursive: true, force: true });
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
