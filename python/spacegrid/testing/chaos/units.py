"""The unit that chaos calls: two entries that only make sense together."""

from __future__ import annotations

import msgspec

from spacegrid import Map, Unit, handler


class Account(msgspec.Struct):
    """What an account adds up to."""

    total: int
    postings: int


class Posting(msgspec.Struct):
    """One amount that was added."""

    amount: int


class Ledger(Unit):
    """An account and its postings: one commit, or none of it."""

    accounts = Map(str, Account)
    postings = Map(tuple[str, int], Posting)

    @handler(route_by="account")
    async def add(self, account: str, amount: int) -> int:
        """Add an amount to an account, and post it.

        Args:
            account: Account; routes.
            amount: What is added.

        Returns:
            The account's total after it.
        """
        found = self.accounts.get(account) or Account(0, 0)
        total = found.total + amount
        self.accounts.put(account, Account(total, found.postings + 1))
        self.postings.put((account, found.postings + 1), Posting(amount))
        return total
