/** Notices of the service as JupyterLab's notifications, with *keep* where it helps. */
import { Notification } from '@jupyterlab/apputils';
import type { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Poll } from '@lumino/polling';

import { browserUs } from './model';
import { canKeep, claimed, type INotice, isNotices, lastShown, stays } from './notices';
import { request } from './request';

const EVERY_MS = 15000;
const LONGEST_MS = 120000;
const INFO_MS = 10000;

export class Notifier {
  constructor(
    private readonly _settings: ServerConnection.ISettings,
    private readonly _trans: TranslationBundle
  ) {
    this._key = `jupyterlab-gpuslice:notice:${_settings.baseUrl}`;
    this._poll = new Poll({
      name: 'jupyterlab-gpuslice:notices',
      factory: () => this._ask(),
      frequency: { interval: EVERY_MS, backoff: true, max: LONGEST_MS },
      linger: 0,
      standby: 'when-hidden'
    });
  }

  dispose(): void {
    this._poll.dispose();
  }

  private async _ask(): Promise<void> {
    const store = window.localStorage;
    const since = lastShown(store, this._key);
    const answer = await request(this._settings, `notices?since=${since}`);
    if (isNotices(answer)) {
      claimed(answer, store, this._key, browserUs()).forEach(notice => {
        this._show(notice);
      });
    }
  }

  private _show(notice: INotice): void {
    Notification.emit(notice.message, notice.severity, {
      // What needs a decision waits for it.
      autoClose: stays(notice) ? false : INFO_MS,
      actions: canKeep(notice)
        ? [
            {
              label: this._trans.__('Keep'),
              caption: this._trans.__('Do not take this slice away yet'),
              callback: () => void this._keep()
            }
          ]
        : []
    });
  }

  private async _keep(): Promise<void> {
    try {
      await request(this._settings, 'keep', { method: 'POST' });
      Notification.success(this._trans.__('Your slice is kept for now.'), {
        autoClose: INFO_MS
      });
    } catch (error) {
      const said = error instanceof Error ? error.message : '';
      Notification.error(said || this._trans.__('It could not be kept: no answer.'), {
        autoClose: false
      });
    }
  }

  private readonly _key: string;
  private readonly _poll: Poll;
}
