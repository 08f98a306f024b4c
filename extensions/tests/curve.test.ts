import assert from 'node:assert/strict';
import { test } from 'node:test';

import { curve, LEAST_US, summary, windowUs } from '../src/curve';

const S = 1e6;
const BOX = { width: 60, height: 10 };
const SPAN = { nowUs: 60 * S, windowUs: LEAST_US };

function at(second: number, value: number | null) {
  return { us: second * S, value };
}

void test('time goes to the right and values go up', () => {
  const { area, line } = curve([at(58, 0), at(60, 10)], BOX, SPAN, 10);
  assert.equal(line, 'M58,10L60,0');
  assert.equal(area, 'M58,10L58,10L60,0L60,10Z');
});

void test('what was not measured is a gap, not a line and not 0', () => {
  const points = [at(1, 5), at(2, null), at(3, 5), at(20, 5)];
  const { line } = curve(points, BOX, SPAN, 10);
  assert.equal(line, 'M1,5M3,5M20,5');
});

void test('values outside the box stay at its edge, an empty range is no error', () => {
  assert.equal(curve([at(60, 99)], BOX, SPAN, 10).line, 'M60,0');
  assert.equal(curve([at(60, 0)], BOX, SPAN, 0).line, 'M60,10');
  assert.equal(curve([], BOX, SPAN, 10).line, '');
});

void test('the window is of full minutes, at least one', () => {
  assert.equal(windowUs([], 5 * S), LEAST_US);
  assert.equal(windowUs([at(0, 1)], 61 * S), 2 * LEAST_US);
});

void test('the sentence for the picture has least, most and last', () => {
  const points = [at(1, 3), at(2, null), at(3, 1), at(4, 2)];
  assert.deepEqual(summary(points), { least: 1, most: 3, last: 2 });
  assert.equal(summary([at(1, null)]), null);
});
