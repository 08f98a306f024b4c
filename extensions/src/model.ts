/** The one model that all views share: one request for all of them. */
import type { ServerConnection } from '@jupyterlab/services';
import { Token } from '@lumino/coreutils';
import { type ISignal, Signal } from '@lumino/signaling';

import { InterestPoll } from './poll';
import { request } from './request';
import { EMPTY, failed, type IState, isAnswer, merged } from './state';

export interface IGpuModel {
  readonly state: IState;
  readonly changed: ISignal<IGpuModel, void>;
  readonly serverSettings: ServerConnection.ISettings;
  /** A view says how often it wants news, in milliseconds; null when it is not seen. */
  want(view: string, interval: number | null): void;
}

export const IGpuModel = new Token<IGpuModel>(
  'jupyterlab-gpuslice:IGpuModel',
  'What the own GPU slice does and costs, polled once for all views.'
);

/** The browser's clock in microseconds. */
export function browserUs(): number {
  return Date.now() * 1000;
}

export class GpuModel implements IGpuModel {
  constructor(
    readonly serverSettings: ServerConnection.ISettings,
    private readonly _words: { away: string; notLoaded: string }
  ) {
    this._poll = new InterestPoll(() => this._ask(), 'jupyterlab-gpuslice');
  }

  get state(): IState {
    return this._state;
  }

  get changed(): ISignal<IGpuModel, void> {
    return this._changed;
  }

  want(view: string, interval: number | null): void {
    this._poll.want(view, interval);
  }

  private async _ask(): Promise<void> {
    try {
      const since = this._state.sequence;
      const answer = await request(this.serverSettings, `sample?since=${since}`);
      if (!isAnswer(answer)) {
        throw new Error();
      }
      this._become(merged(this._state, answer, browserUs()));
    } catch (error) {
      const missing = error instanceof Error && 'status' in error && error.status === 404;
      const { away, notLoaded } = this._words;
      this._become(failed(this._state, missing ? notLoaded : away));
      throw error; // so that the poll waits longer and longer
    }
  }

  private _become(state: IState): void {
    this._state = state;
    this._changed.emit();
  }

  private _state: IState = EMPTY;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _poll: InterestPoll;
}
