import assert from 'node:assert/strict';
import { test } from 'node:test';

import { canKeep, claimed, type INotice, isNotices, stays, type Store } from '../src/notices';

const NOW = 1_800_000_000e6;

function notice(id: number, more: Partial<INotice> = {}): INotice {
  return {
    id,
    lease_id: null,
    kind: 'budget',
    severity: 'info',
    message: 'm',
    created_us: NOW,
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

void test('a notice is shown by one tab of the browser only', () => {
  const shared = store();
  const ids = (tab: INotice[]) => tab.map(one => one.id);
  assert.deepEqual(ids(claimed([notice(1), notice(2)], shared, 'k', NOW)), [1, 2]);
  assert.deepEqual(ids(claimed([notice(2), notice(3)], shared, 'k', NOW)), [3]);
  assert.deepEqual(ids(claimed([notice(3)], shared, 'other', NOW)), [3]);
});

void test('a new browser is not told what is long past', () => {
  const shared = store();
  const old = notice(1, { created_us: NOW - 2 * 3600e6 });
  assert.deepEqual(claimed([old], shared, 'k', NOW), []);
  const late = notice(2, { created_us: NOW - 2 * 3600e6 });
  assert.equal(claimed([late], shared, 'k', NOW).length, 1);
});

void test('a store with rubbish in it does no harm', () => {
  const shared = store();
  shared.setItem('k', 'rubbish');
  assert.equal(claimed([notice(1)], shared, 'k', NOW).length, 1);
});

void test('what needs an answer stays until it is seen', () => {
  for (const kind of ['used-80', 'used-95', 'ends-10', 'ends-2', 'queue', 'reservation']) {
    assert.ok(stays(notice(1, { kind, severity: 'warning' })), kind);
  }
  assert.ok(stays(notice(1, { kind: 'offer' })));
  assert.ok(!stays(notice(1, { kind: 'queue' })));
});

void test('keep is offered where it is an answer', () => {
  assert.ok(canKeep(notice(1, { kind: 'idle', lease_id: 'a' })));
  assert.ok(!canKeep(notice(1, { kind: 'idle' })));
  assert.ok(!canKeep(notice(1, { kind: 'ended', lease_id: 'a' })));
});

void test('what are no notices is recognised', () => {
  assert.ok(isNotices([notice(1)]));
  assert.ok(isNotices([]));
  assert.ok(!isNotices({}));
  assert.ok(!isNotices([null]));
});
