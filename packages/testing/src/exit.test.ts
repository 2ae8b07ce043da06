import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { describe, it } from 'node:test';
import { createAuthority } from './authority.ts';

describe('a process that exits', () => {
  // The child of the second says in time that it has outlived it, instead of holding the test for ever.
  const program = (end: string): string => `
    import { createAuthority } from ${JSON.stringify(import.meta.resolve('./authority.ts'))};
    const [one, other] = [await createAuthority(), await createAuthority()];
    const child = other.run(await other.pod('shop/shop'), process.execPath, ['-e', 'setTimeout(() => console.log("outlived it"), 10_000)']);
    console.log([one.kubeconfig, other.kubeconfig].join('\\n'));
    ${end}
  `;

  async function run(end: string): Promise<{ readonly code: number | null; readonly kubeconfigs: readonly string[] }> {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program(end)], { stdio: ['ignore', 'pipe', 'ignore'] });
    let out = '';
    child.stdout.on('data', (chunk) => (out += String(chunk)));
    // When nobody has its output any more, which its own children share.
    const [code] = await once(child, 'close');
    return { code, kubeconfigs: out.trim().split('\n') };
  }

  for (const [how, end, expected] of [
    ['by process.exit()', 'process.exit(3)', 3],
    ['by an error that nobody catches', "await once(child, 'spawn'); throw new Error('broken')", 1],
  ] as const) {
    it(`leaves no file and no child behind, ${how}`, async () => {
      const { code, kubeconfigs } = await run(`const { once } = await import('node:events'); ${end}`);
      assert.equal(code, expected);
      assert.deepEqual(
        kubeconfigs.map((file) => existsSync(dirname(file))),
        [false, false],
      );
    });
  }

  it('is listened for once, however many authorities there are, until the last one closes', async (t) => {
    const before = process.listenerCount('exit');
    const authorities = await Promise.all(Array.from({ length: 12 }, () => createAuthority()));
    const closeAll = async (): Promise<unknown> => Promise.all(authorities.map((authority) => authority.close()));
    t.after(closeAll);
    assert.equal(process.listenerCount('exit'), before + 1);
    await closeAll();
    assert.equal(process.listenerCount('exit'), before);
  });

  it('is not listened for by one that cannot start', async (t) => {
    const authority = await createAuthority();
    t.after(() => authority.close());
    const before = process.listenerCount('exit');
    await assert.rejects(createAuthority({ port: Number(new URL(authority.url).port) }), { code: 'EADDRINUSE' });
    await authority.close();
    assert.equal(process.listenerCount('exit'), before - 1);
  });
});
