import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as format from '../src/format';

const GIB = 2 ** 30;

void test('memory is in the unit that reads best, or in the one it is compared in', () => {
  assert.equal(format.memory(0, 'en'), '0 B');
  assert.equal(format.memory(512, 'en'), '512 B');
  assert.equal(format.memory(6.25 * GIB, 'en'), '6.3 GiB');
  assert.equal(format.memory(24 * GIB, 'en'), '24 GiB');
  assert.equal(format.memory(140.4 * GIB, 'en'), '140 GiB');
  assert.equal(format.memory(300 * 2 ** 20, 'en', ['GiB', GIB]), '0.3 GiB');
  assert.equal(format.memory(6.25 * GIB, 'de'), '6,3 GiB');
});

void test('money is as on the other pages, small amounts are seen to move', () => {
  assert.equal(format.money(2_750_000, 'EUR', 'en'), '2.75 EUR');
  assert.equal(format.money(420_300, 'EUR', 'en'), '0.4203 EUR');
  assert.equal(format.money(0, 'credits', 'en', 2), '0.00 credits');
  assert.equal(format.money(1_234_500_000, 'EUR', 'de'), '1.234,50 EUR');
});

void test('a price is not rounded to something else', () => {
  assert.equal(format.price(875_000, 'EUR', 'en'), '0.875 EUR');
  assert.equal(format.price(2_500_000, 'EUR', 'en'), '2.50 EUR');
});

void test('a time that is left is never rounded up', () => {
  const trans = {
    __: (text: string, ...parts: string[]) =>
      parts.reduce((said, part, at) => said.replace(`%${at + 1}`, part), text)
  };
  const told = (us: number) => format.duration(us, trans as never);
  assert.equal(told(59e6), 'less than a minute');
  assert.equal(told(119e6), '1 min');
  assert.equal(told(3600e6 * 3 + 20.9 * 60e6), '3 h 20 min');
});

void test('percent is whole', () => {
  assert.equal(format.percent(39.6, 'en'), '40%');
  assert.equal(format.percent(0, 'en'), '0%');
});
