package delivery

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// MaxRetryAfter is the longest wait that a receiver can ask for.
const MaxRetryAfter = time.Hour

// Classify judges one attempt by the status of the answer (0: no status line was received) and by what went wrong.
//
// 2xx is delivered. 408, 425, 429, every 5xx, network errors and timeouts are to be retried. Everything else is final:
// also a redirect, which is never followed, because it would send the payload where nobody agreed to have it sent.
//
// A status counts as it stands, whatever became of the body after it: a receiver that says it took the webhook doesn't
// get it again because its answer broke off (docs/adr/0007). A blocked address is retried like a DNS failure, since
// a resolver that lies for a minute must not cost the event.
func Classify(status int, class ErrorClass) Outcome {
	switch {
	case status == 0 && class == ErrorRequest:
		return OutcomeFailed
	case status == 0:
		return OutcomeRetry
	case status >= 200 && status <= 299:
		return OutcomeDelivered
	case status >= 500 && status <= 599:
		return OutcomeRetry
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		return OutcomeRetry
	default:
		return OutcomeFailed
	}
}

// DisablesDestination reports whether the answer says that the receiver is gone for good (410), after which nothing
// more is sent to the destination.
func DisablesDestination(status int) bool { return status == http.StatusGone }

// RetryAfter reads a Retry-After header (RFC 9110, section 10.2.3): whole seconds or an HTTP date, which is counted
// from now. The wait is at most MaxRetryAfter; a negative number and a date in the past are 0. It reports false for
// anything else, which is then ignored.
func RetryAfter(header string, now time.Time) (time.Duration, bool) {
	header = strings.TrimSpace(header)
	if digits := strings.TrimPrefix(header, "-"); digits != "" && strings.Trim(digits, "0123456789") == "" {
		seconds, _ := strconv.ParseInt(header, 10, 64) // out of range is the only error left; it gives the nearest number
		seconds = min(max(seconds, 0), int64(MaxRetryAfter/time.Second))
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0, false
	}
	return min(max(at.Sub(now), 0), MaxRetryAfter), true
}
