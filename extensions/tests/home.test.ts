import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { TranslationBundle } from '@jupyterlab/translation';

import { advice, crossed, fullness, type IHome, isHome, level, share, warning } from '../src/home';
import type { Store } from '../src/notices';

const GIB = 2 ** 30;
/** English, as without a translation. */
const trans = {
  __: (text: string, ...values: unknown[]) =>
    text.replace(/%(\d)/g, (_, n: string) => String(values[Number(n) - 1]))
} as unknown as TranslationBundle;

/** A home as the server says it, which is what decides about `warn`. */
function home(used: number | null, limit: number | null, more: Partial<IHome> = {}): IHome {
  return {
    source: 'quota',
    used_bytes: used,
    limit_bytes: limit,
    free_bytes: used === null || limit === null ? null : Math.max(0, limit - used),
    of_disk: false,
    at_least: false,
    taken_us: 1,
    warn: used !== null && limit !== null && used >= 0.9 * limit,
    ...more
  };
}

function store(): Store {
  const kept = new Map<string, string>();
  return {
    getItem: key => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, value)
  };
}

void test('what is no home is recognised', () => {
  assert.ok(isHome(home(1, 2)));
  for (const wrong of [
    null,
    1,
    'x',
    {},
    { source: 'quota', warn: true },
    { source: 'quota', used_bytes: 1 },
    []
  ]) {
    assert.ok(!isHome(wrong));
  }
});

void test('how full it is, in numbers and words', () => {
  assert.equal(share(home(1, 4)), 0.25);
  assert.equal(share(home(null, 4)), null);
  assert.equal(share(home(4, null)), null);
  assert.equal(share(home(0, 0)), 1);
  const text = (one: IHome) => fullness(one, 'en', trans);
  assert.equal(text(home(8.1 * GIB, 10 * GIB)), '8.1 of 10 GiB');
  assert.equal(text(home(null, 10 * GIB)), null);
  assert.equal(text(home(GIB, 3 * GIB, { of_disk: true })), '1 GiB used, 2 GiB free');
  assert.equal(text(home(GIB, 2 * GIB, { at_least: true })), 'at least 1 of 2 GiB');
});

void test('there is a warning when there is something to do, and it says what', () => {
  const said = (one: IHome) => warning(one, 'en', trans);
  assert.equal(said(home(8 * GIB, 10 * GIB)), null);
  assert.equal(said(home(null, 10 * GIB)), null);
  assert.equal(
    said(home(9.3 * GIB, 10 * GIB)),
    'Your home is nearly full (9.3 of 10 GiB). Delete files, or notebooks cannot be saved.'
  );
  assert.match(said(home(10 * GIB, 10 * GIB)) ?? '', /^Your home is full \(10 of 10 GiB\)\./);
  const over = home(11 * GIB, 10 * GIB, { source: 'counted' });
  assert.equal(
    said(over),
    'Your home has reached its limit (11 of 10 GiB). Delete files that you do not need.'
  );
  const disk = home(998.5 * GIB, 999 * GIB, { source: 'counted', of_disk: true, at_least: true });
  assert.match(said(disk) ?? '', /^The disk .* full \(at least 999 GiB used, 512 MiB free\)\./);
  assert.match(said(disk) ?? '', /Delete files, or notebooks cannot be saved\.$/);
  // A notification in JupyterLab is cut off after so many characters.
  assert.ok((said(disk) ?? '').length < 140);
  assert.match(advice(disk, trans), /Others use this disk, too: tell an administrator\.$/);
  assert.match(advice(over, trans), /Trash.* ask an administrator\.$/);
});

void test('it is said once per crossing, in one tab of the browser', () => {
  const shared = store();
  const say = (used: number) => crossed(home(used, 100), shared, 'k');
  assert.ok(!say(50));
  assert.ok(say(90));
  assert.ok(!say(91));
  assert.ok(!say(90));
  // Full is more than nearly full, and is said, too; then it is known.
  assert.ok(say(99));
  assert.ok(!say(100));
  // A little less is not the way down, and not a new crossing either.
  assert.ok(!say(95));
  assert.ok(!say(99));
  // Nearly full again, and once more full.
  assert.ok(!say(91));
  assert.ok(say(100));
  // Down by one step only, and then by all, and up again.
  assert.ok(!say(89));
  assert.ok(!say(92));
  assert.ok(!say(86));
  assert.ok(!say(80));
  assert.ok(say(92));
  // Another server's home is another one.
  assert.ok(crossed(home(92, 100), shared, 'other'));
});

void test('what is not known crosses nothing, and rubbish in the store does no harm', () => {
  const shared = store();
  assert.ok(crossed(home(95, 100), shared, 'k'));
  assert.ok(!crossed(home(null, 100), shared, 'k'));
  assert.ok(!crossed(home(95, 100), shared, 'k'));
  shared.setItem('k', 'rubbish');
  assert.ok(crossed(home(95, 100), shared, 'k'));
});

void test('the level is the server’s warning and how much there is of it', () => {
  assert.equal(level(home(89, 100)), 0);
  assert.equal(level(home(90, 100)), 1);
  assert.equal(level(home(98.9, 100)), 1);
  assert.equal(level(home(99, 100)), 2);
  assert.equal(level(home(200, 100)), 2);
});
