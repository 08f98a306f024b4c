import assert from 'node:assert/strict';
import { test } from 'node:test';

import { FAST_MS, InterestPoll, SLOW_MS } from '../src/poll';

void test('it asks as often as the most interested view, and stops when none is left', async () => {
  const asked: number[] = [];
  let heard: () => void = () => undefined;
  const poll = new InterestPoll(() => {
    asked.push(poll.interval);
    heard();
    return Promise.resolve();
  }, 'test');
  const next = () => new Promise<void>(resolve => (heard = resolve));

  assert.equal(poll.interval, Infinity);
  const first = next();
  poll.want('status', SLOW_MS);
  await first;
  assert.deepEqual(asked, [SLOW_MS]);

  const second = next();
  poll.want('panel', FAST_MS); // and does not wait five seconds for it
  await second;
  assert.equal(poll.interval, FAST_MS);

  poll.want('panel', null);
  assert.equal(poll.interval, SLOW_MS);
  poll.want('status', null);
  assert.equal(poll.interval, Infinity);

  const again = next();
  poll.want('panel', FAST_MS);
  await again;
  poll.dispose();
  assert.equal(asked.length, 3);
});
