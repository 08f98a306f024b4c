import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as state from '../src/state';

const S = 1e6;
const NOW = 1_800_000_000 * S;

const DEVICE: state.IDevice = {
  kind: 'whole',
  label: 'GPU 0',
  model: null,
  memory_total: 100,
  simulated: false,
  problem: null,
  memory_reason: null,
  utilisation_reason: null
};

const BILL: state.IBill = {
  title: 'A quarter',
  state: 'running',
  rate_u_per_hour: 3600,
  cost_u: 10,
  as_of_us: NOW - 5 * S,
  heard_us: NOW,
  currency: 'EUR',
  simulated: false,
  ticking: true,
  stop_requested_us: null,
  stop_reason: null,
  deadline_us: null,
  deadline_reason: null
};

function answer(sequences: number[], more: Partial<state.IAnswer> = {}): state.IAnswer {
  return {
    boot: 'one',
    now_us: NOW,
    rows: sequences.map(n => [n, NOW - S, n * 10, null, null]),
    device: DEVICE,
    bill: null,
    bill_problem: null,
    behind_hub: false,
    ...more
  };
}

void test('new rows are added, rows that are known are not doubled', () => {
  const first = state.merged(state.EMPTY, answer([1, 2]), NOW);
  const second = state.merged(first, answer([2, 3]), NOW);
  assert.deepEqual(
    second.rows.map(row => row.sequence),
    [1, 2, 3]
  );
  assert.equal(second.sequence, 3);
  assert.equal(second.rows.at(-1)?.utilisation, null);
});

void test('an answer without rows leaves what is known', () => {
  const first = state.merged(state.EMPTY, answer([1]), NOW);
  const without = answer([]);
  Reflect.deleteProperty(without, 'device');
  const second = state.merged(first, without, NOW);
  assert.equal(second.device, DEVICE);
  assert.equal(second.sequence, 1);
});

void test('a server that was started again starts the rows anew', () => {
  const first = state.merged(state.EMPTY, answer([7, 8]), NOW);
  const second = state.merged(first, answer([1], { boot: 'two' }), NOW);
  assert.deepEqual(
    second.rows.map(row => row.sequence),
    [1]
  );
});

void test('rows are bounded', () => {
  const many = Array.from({ length: state.KEEP + 5 }, (_, i) => i + 1);
  const all = state.merged(state.EMPTY, answer(many), NOW);
  assert.equal(all.rows.length, state.KEEP);
  assert.equal(all.rows[0]?.sequence, 6);
});

void test('a reading of the past is not shown as the present', () => {
  const known = state.merged(state.EMPTY, answer([1]), NOW);
  assert.equal(state.present(known, NOW)?.memory, 10);
  assert.equal(state.lastSeenUs(known, NOW), null);
  const later = NOW + state.PRESENT_US;
  assert.equal(state.present(known, later), null);
  assert.equal(state.lastSeenUs(known, later), NOW - S);
});

void test('the browser clock may be wrong', () => {
  const wrong = NOW - 3600 * S;
  const known = state.merged(state.EMPTY, answer([1], { bill: BILL }), wrong);
  assert.notEqual(state.present(known, wrong), null);
  assert.equal(state.costNow(known, wrong)?.micro, 15);
});

void test('the cost goes on by the rate while the answer is fresh', () => {
  const known = state.merged(state.EMPTY, answer([1], { bill: BILL }), NOW);
  assert.deepEqual(state.costNow(known, NOW + 10 * S), {
    micro: 25,
    asOfUs: null
  });
});

void test('a cost that is not of now carries its time', () => {
  const known = state.merged(state.EMPTY, answer([1], { bill: BILL }), NOW);
  const old = { micro: 10, asOfUs: BILL.as_of_us };
  assert.deepEqual(state.costNow(known, NOW + 91 * S), old);
  const still = { ...known, bill: { ...BILL, ticking: false } };
  assert.deepEqual(state.costNow(still, NOW), old);
});

void test('nothing is paid after a stop was asked for', () => {
  const bill = {
    ...BILL,
    ticking: false,
    stop_requested_us: BILL.as_of_us + 2 * S
  };
  const known = state.merged(state.EMPTY, answer([1], { bill }), NOW);
  assert.equal(state.costNow(known, NOW + 60 * S)?.micro, 12);
});

void test('without a bill there is no cost, which is not 0', () => {
  assert.equal(state.costNow(state.EMPTY, NOW), null);
});

void test('a failure keeps what is known and says why', () => {
  const known = state.merged(state.EMPTY, answer([1]), NOW);
  const after = state.failed(known, 'Away.');
  assert.equal(after.problem, 'Away.');
  assert.equal(after.rows.length, 1);
  assert.equal(state.merged(after, answer([2]), NOW).problem, null);
});

void test('what is no answer is recognised', () => {
  assert.ok(state.isAnswer(JSON.parse(JSON.stringify(answer([1])))));
  for (const wrong of [null, 'x', {}, { boot: 'x' }, []]) {
    assert.ok(!state.isAnswer(wrong));
  }
});

void test('the time left is by the server clock, and none while it is being stopped', () => {
  const at = (more: Partial<state.IBill>, now = NOW) =>
    state.leftUs(
      state.merged(state.EMPTY, answer([], { bill: { ...BILL, ...more }, now_us: NOW + S }), NOW),
      now
    );
  assert.equal(at({}), null);
  const deadline_us = NOW + 61 * S;
  assert.equal(at({ deadline_us }), 60 * S);
  assert.equal(at({ deadline_us }, NOW + 90 * S), 0);
  assert.equal(at({ deadline_us, state: 'stopping' }), null);
  assert.equal(at({ deadline_us, stop_requested_us: NOW }), null);
});
