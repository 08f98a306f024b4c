"""The ledger: what was leased, for how long, at which price, and who paid, as facts in a database.

Invariants (``verify`` proves them, after any crash):

- the segments of a lease tile its billed time without gap or overlap, from the engine's *started*
  to the engine's *finished*, at one price each;
- every segment with an amount is paid by entries that sum to it; entries are never changed;
- the claims on a device never overlap in time beyond what the device has;
- balances (``account_period``) are projections: rebuilt from entries, holds and leases they are
  equal to what is stored.

Owns: tables, migrations, accounts, prices, holds, segments, entries, verification. Does not own:
who may have what (``quotas``), when things happen (``broker``), what is running (the engine).
"""
