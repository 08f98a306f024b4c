import assert from 'node:assert/strict';
import { test } from 'node:test';

import { pathOf, startersOf } from '../src/starters';

const ONE = { name: 'start-here', title: 'Start here', description: 'What a slice is.' };

void test('the starters come in the order of the answer', () => {
  const two = { ...ONE, name: 'train-a-cnn' };
  assert.deepEqual(startersOf({ starters: [two, ONE], reason: null }), [two, ONE]);
  assert.deepEqual(startersOf({ starters: [], reason: 'None here.' }), []);
});

void test('what is no starter gets no card', () => {
  assert.deepEqual(startersOf({ starters: [ONE, null, 'x', { ...ONE, title: 1 }, []] }), [ONE]);
  for (const answer of [null, undefined, 'x', [], {}, { starters: 'x' }, { starters: null }]) {
    assert.deepEqual(startersOf(answer), []);
  }
});

void test('a path is a text that is not empty', () => {
  assert.equal(pathOf({ path: 'a b/start-here.ipynb' }), 'a b/start-here.ipynb');
  for (const answer of [null, 'x', {}, { path: '' }, { path: 1 }]) {
    assert.equal(pathOf(answer), null);
  }
});
