/** Asks how full the home is, once a minute for all views, and tells the person when it matters. */
import { Notification } from '@jupyterlab/apputils';
import type { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Token } from '@lumino/coreutils';
import { Poll } from '@lumino/polling';

import { crossed, type IHome, isHome, level, warning } from './home';
import { request } from './request';
import { locale } from './words';

/** It changes slowly. */
const EVERY_MS = 60000;
/** While it is being counted for the first time. */
const SOON_MS = 2000;
const LONGEST_MS = 300000;

export interface IHomeModel {
  /** Null before the first answer, and where there is nothing to show. */
  readonly home: IHome | null;
}

export const IHomeModel = new Token<IHomeModel>(
  'jupyterlab-gpuslice:IHomeModel',
  'How full the home of the notebook server is.'
);

export class HomeModel implements IHomeModel {
  constructor(
    private readonly _settings: ServerConnection.ISettings,
    private readonly _trans: TranslationBundle,
    /** Shows more, where there is something that does. */
    private readonly _show: (() => void) | null
  ) {
    this._key = `jupyterlab-gpuslice:home:${_settings.baseUrl}`;
    this._poll = new Poll({
      name: 'jupyterlab-gpuslice:home',
      factory: () => this._ask(),
      frequency: { interval: EVERY_MS, backoff: true, max: LONGEST_MS },
      linger: 0,
      standby: 'when-hidden'
    });
  }

  get home(): IHome | null {
    return this._home;
  }

  dispose(): void {
    this._poll.dispose();
  }

  private async _ask(): Promise<void> {
    const answer = await request(this._settings, 'home');
    if (!isHome(answer)) {
      return;
    }
    if (answer.source === 'none') {
      // A workstation without a hub: nothing to show, and it stays so.
      void this._poll.stop();
      return;
    }
    this._home = answer;
    const interval = answer.source === 'counting' ? SOON_MS : EVERY_MS;
    this._poll.frequency = { interval, backoff: true, max: LONGEST_MS };
    if (crossed(answer, window.localStorage, this._key)) {
      this._warn(answer);
    }
  }

  private _warn(home: IHome): void {
    const words = warning(home, locale(), this._trans);
    if (words === null) {
      return;
    }
    const show = this._show;
    Notification.emit(words, level(home) === 2 ? 'error' : 'warning', {
      autoClose: false, // it waits for somebody to read it
      actions: show ? [{ label: this._trans.__('What to do'), callback: show }] : []
    });
  }

  private _home: IHome | null = null;
  private readonly _key: string;
  private readonly _poll: Poll;
}
