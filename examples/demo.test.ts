import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, watch } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

const demo = fileURLToPath(new URL('demo.ts', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'k8s-sa-auth-demo-'));
const started: ChildProcess[] = [];

after(() => {
  for (const child of started) child.kill('SIGTERM');
  rmSync(directory, { recursive: true });
});

interface Run {
  readonly code: number | null;
  readonly output: string;
}

/** Runs the demo with pipes, and calls `onOutput` with what it has printed so far. */
async function runDemo(
  args: readonly string[],
  { env = {}, onOutput }: { env?: object; onOutput?: (output: string, child: ChildProcess) => void } = {},
): Promise<Run> {
  const child = spawn(process.execPath, [demo, ...args], { env: { PATH: process.env['PATH'], TMPDIR: directory, ...env } });
  started.push(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      onOutput?.(output, child);
    });
  }
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}

const pidsIn = (output: string): readonly number[] => [...output.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid));
const isRunning = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

function assertNothingIsLeft({ output }: Run): void {
  const pids = pidsIn(output);
  assert.equal(pids.length, 3);
  assert.deepEqual(pids.filter(isRunning), []);
  assert.deepEqual(readdirSync(directory), []);
}

describe('the demo', () => {
  let run: Run;

  before(async () => {
    run = await runDemo([]);
  });

  it('exits with 0', () => {
    assert.equal(run.code, 0, run.output);
    assert.match(run.output, /✓ 22 steps, all as they should be, in \d+\.\d s\n$/);
  });

  it('shows each step: what was sent, what was answered, and whether the API server was asked', () => {
    const lines = run.output.split('\n').filter((line) => line.startsWith('  ✓'));
    // How often it asks is left to the guard where it may see through a token by itself, and where time passes.
    const told = lines.map((line) =>
      [line.slice(4, 40), line.slice(40, 63), line.slice(63, 74)].map((column) => column.trim()).join(' | '),
    );
    assert.deepEqual(
      told.map((line) =>
        /forged|stranger|→ secret-store \| 403|admin \| 403|rotated|deleted|back/.test(line) ? line.replace(/ \| [^|]*$/, '') : line,
      ),
      [
        'no token | 401 missing_token | —',
        'garbage | 403 invalid_token | —',
        'a forged token of api/api | 403 invalid_token',
        'data-store’s API server token | 403 invalid_token | —',
        'stranger/app, audience secret-store | 403 caller_not_allowed',
        'api → secret-store | 200 | 1 review',
        'the same token again, GET /whoami | 200 | —',
        'api → data-store | 200 | 1 review',
        'api’s data-token, to secret-store | 403 invalid_token | —',
        'api’s api-token, to data-store | 403 invalid_token | —',
        'data-store → secret-store | 403 caller_not_allowed',
        'ops/console, GET /admin | 200 | 1 review',
        'api’s api-token, GET /admin | 403 invalid_token',
        'api, audience secret-store-admin | 403 caller_not_allowed',
        'no token, GET /healthz | 200 | —',
        'traffic, all tokens rotated 3 times | 200',
        'a second pod of api/api | 200 | 1 review',
        'its token, the pod deleted | 403 invalid_token',
        'api → secret-store | 200 | —',
        'a pod of api/api never seen before | 503 review_unavailable | —',
        'the same pod, the API server back | 200',
        'api → secret-store | 502 | —',
      ],
    );
  });

  it('says who the handler saw, and what api was told', () => {
    assert.match(run.output, /the handler sees api\/api, pod app-[0-9a-f]+-[0-9a-f]+/);
    assert.match(run.output, /Hello from secret store\. You have been authenticated/);
    assert.match(run.output, /Retry-After [1-5]\n/);
    assert.match(run.output, /\d{3,} requests, none refused/);
  });

  it('prints no colours into a pipe, and never a token', () => {
    assert.ok(!run.output.includes('\u001B'));
    assert.ok(!run.output.includes('eyJ'));
  });

  it('leaves no process and no file', () => {
    assertNothingIsLeft(run);
  });

  it('is done within 30 seconds', () => {
    const [, seconds] = /in (\d+\.\d) s\n$/.exec(run.output) ?? [];
    assert.ok(Number(seconds) < 30);
  });
});

describe('the demo, interrupted', () => {
  it('leaves nothing behind in the middle of its steps', async () => {
    let isInterrupted = false;
    const run = await runDemo([], {
      onOutput: (output, child) => {
        if (isInterrupted || !output.includes('a second pod')) return;
        isInterrupted = true;
        child.kill('SIGINT');
      },
    });
    assert.equal(run.code, 130, run.output);
    assert.match(run.output, /Stopped\. No process and no file is left\.\n$/);
    assertNothingIsLeft(run);
  });

  it('leaves nothing behind before it has said a word', async () => {
    const watcher = watch(directory);
    const running = runDemo([]);
    await once(watcher, 'change');
    watcher.close();
    started.at(-1)?.kill('SIGINT');
    const { code, output } = await running;
    assert.equal(code, 130, output);
    assert.deepEqual(readdirSync(directory), []);
  });

  it('ends on Ctrl-C when it was told to stay, and says what to curl until then', async () => {
    let isInterrupted = false;
    const run = await runDemo(['--stay'], {
      onOutput: (output, child) => {
        if (isInterrupted || !output.includes('kubectl --kubeconfig')) return;
        isInterrupted = true;
        child.kill('SIGINT');
      },
    });
    assert.equal(run.code, 130, run.output);
    assert.match(run.output, /curl -H "X-Client-Id: \$\(cat \$api_token\)" http:\/\/127\.0\.0\.1:\d+\/whoami/);
    assertNothingIsLeft(run);
  });
});

describe('the demo’s arguments', () => {
  it('explains itself', async () => {
    const { code, output } = await runDemo(['--help']);
    assert.equal(code, 0);
    assert.match(output, /Usage: pnpm demo \[--stay\]/);
  });

  it('refuses what it does not know', async () => {
    const { code, output } = await runDemo(['--stop']);
    assert.equal(code, 2);
    assert.match(output, /'--stop'/);
    assert.match(output, /Usage: pnpm demo \[--stay\]/);
  });

  it('exits with 1 where it cannot start', async () => {
    const { code, output } = await runDemo([], { env: { TMPDIR: join(directory, 'missing') } });
    assert.equal(code, 1);
    assert.match(output, /✗ .*ENOENT/);
  });
});
