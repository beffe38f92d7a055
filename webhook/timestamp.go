package webhook

import (
	"fmt"
	"strconv"
	"time"
)

// How far a signed timestamp may be from now, either way: as much as the signer's clock may be wrong and the request may
// take, and no longer than a replay may do harm.
const (
	DefaultTolerance = 5 * time.Minute
	MaxTolerance     = 24 * time.Hour
)

// Tolerance is how far a signed timestamp may be from now.
func (s Source) Tolerance() time.Duration {
	if s.ToleranceSeconds == 0 {
		return DefaultTolerance
	}
	return time.Duration(s.ToleranceSeconds) * time.Second
}

// parseTimestamp reads Unix seconds: decimal digits and nothing else, so that what is compared with the clock is what was
// signed.
func parseTimestamp(s string) (int64, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("timestamp isn't Unix seconds: %w", ErrBadSignature)
		}
	}
	at, err := strconv.ParseInt(s, 10, 64)
	if err != nil || at > 1<<40 { // some 35,000 years, and far from what overflows
		return 0, fmt.Errorf("timestamp isn't Unix seconds: %w", ErrBadSignature)
	}
	return at, nil
}

// fresh compares a timestamp with the clock. It must have been found to be signed.
func (r request) fresh(at int64) error {
	switch age := r.now.Unix() - at; {
	case age > int64(r.tolerance/time.Second):
		return fmt.Errorf("%d seconds old: %w", age, ErrTooOld)
	case -age > int64(r.tolerance/time.Second):
		return fmt.Errorf("%d seconds ahead: %w", -age, ErrTooNew)
	}
	return nil
}
