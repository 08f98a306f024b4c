"""Who may have what: limits as versioned policies, decided in the transaction that grants.

Invariants: a limit is checked by the guarded update that uses it up, never by a look before; a
change of a limit closes one row and writes another, with an actor. Owns: policies, admission.
Does not own: money and leases themselves (``ledger``), waiting and placing (``broker``).
"""
