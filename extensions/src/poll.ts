/** Asks as often as the most interested view needs, and never while the tab is hidden. */
import { Poll } from '@lumino/polling';

/** While the panel can be seen. */
export const FAST_MS = 1000;
/** For the status bar alone. */
export const SLOW_MS = 5000;
const LONGEST_MS = 10000;

export class InterestPoll {
  constructor(ask: () => Promise<void>, name: string) {
    this._poll = new Poll({
      name,
      factory: ask,
      auto: false,
      frequency: { interval: SLOW_MS, backoff: true, max: LONGEST_MS },
      linger: 0,
      standby: 'when-hidden'
    });
  }

  /** A view wants news this often; null: it cannot be seen now. */
  want(view: string, interval: number | null): void {
    if (interval === null) {
      this._wanted.delete(view);
    } else {
      this._wanted.set(view, interval);
    }
    const least = Math.min(...this._wanted.values());
    if (!Number.isFinite(least)) {
      void this._poll.stop();
      return;
    }
    const before = this._poll.frequency.interval;
    this._poll.frequency = {
      interval: least,
      backoff: true,
      max: LONGEST_MS
    };
    // Whoever has just appeared should not look at old numbers.
    if (this._poll.state.phase === 'constructed') {
      void this._poll.start();
    } else if (least < before || this._poll.state.phase === 'stopped') {
      void this._poll.refresh();
    }
  }

  get interval(): number {
    return this._wanted.size ? this._poll.frequency.interval : Infinity;
  }

  dispose(): void {
    this._poll.dispose();
  }

  private readonly _poll: Poll<void, unknown, string>;
  private readonly _wanted = new Map<string, number>();
}
