# What the document can say in words only: `issuedBefore` lies within the life of a token and at most 5 minutes ahead.
from datetime import datetime, timedelta, timezone

import schemathesis
from hypothesis import strategies

NOW = datetime.now(timezone.utc)
TIMES = strategies.integers(min_value=0, max_value=20 * 86400).map(
    lambda ago: (NOW - timedelta(seconds=ago)).isoformat().replace("+00:00", "Z")
)
schemathesis.openapi.format("date-time", TIMES)
