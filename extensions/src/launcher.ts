/** A card for each starter notebook; it opens a copy among the person's own files. */
import { type ICommandPalette, Notification } from '@jupyterlab/apputils';
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ILauncher } from '@jupyterlab/launcher';
import type { TranslationBundle } from '@jupyterlab/translation';

import { starterIcon } from './icon';
import { request } from './request';
import { type IStarter, pathOf, startersOf } from './starters';

const OPEN = 'gpuslice:open-starter';

export class StarterCards {
  constructor(
    private readonly _app: JupyterFrontEnd,
    private readonly _trans: TranslationBundle
  ) {
    _app.commands.addCommand(OPEN, {
      label: args => this._named(args.name)?.title ?? _trans.__('Open a Starter Notebook'),
      caption: args =>
        this._named(args.name)?.description ?? _trans.__('Open a copy among your own files'),
      icon: starterIcon,
      execute: args => this._open(args.name),
      describedBy: {
        args: {
          type: 'object',
          properties: {
            name: { type: 'string', description: _trans.__('Which starter notebook') }
          },
          required: ['name']
        }
      }
    });
  }

  /** Cards and palette items, once the server has said which starters there are. */
  async show(launcher: ILauncher | null, palette: ICommandPalette | null): Promise<void> {
    const category = this._trans.__('GPU starters');
    try {
      this._starters = startersOf(await request(this._settings, 'starters'));
    } catch {
      // Without an answer there are no cards; that the server is away is said elsewhere.
      return;
    }
    this._starters.forEach(({ name }, rank) => {
      launcher?.add({ command: OPEN, args: { name }, category, rank });
      palette?.addItem({ command: OPEN, args: { name }, category, rank });
    });
  }

  /** The document's widget, for the launcher to give its place to. */
  private async _open(name: unknown): Promise<unknown> {
    try {
      const body = JSON.stringify({ name });
      const path = pathOf(await request(this._settings, 'starters', { method: 'POST', body }));
      return await this._app.commands.execute('docmanager:open', { path });
    } catch (error) {
      const said = error instanceof Error ? error.message : '';
      Notification.error(said || this._trans.__('The notebook could not be opened: no answer.'), {
        autoClose: false
      });
      return undefined;
    }
  }

  private _named(name: unknown): IStarter | undefined {
    return this._starters.find(starter => starter.name === name);
  }

  private get _settings() {
    return this._app.serviceManager.serverSettings;
  }

  private _starters: readonly IStarter[] = [];
}
