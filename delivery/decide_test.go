package delivery_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kapsel-io/kapsel/delivery"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status int
		class  delivery.ErrorClass
		want   delivery.Outcome
	}{
		{200, "", "delivered"}, {201, "", "delivered"}, {204, "", "delivered"}, {299, "", "delivered"},
		{408, "", "retry"}, {425, "", "retry"}, {429, "", "retry"},
		{500, "", "retry"}, {501, "", "retry"}, {503, "", "retry"}, {599, "", "retry"},
		{101, "", "failed"}, {199, "", "failed"}, {300, "", "failed"}, {301, "", "failed"}, {307, "", "failed"}, {308, "", "failed"},
		{400, "", "failed"}, {401, "", "failed"}, {404, "", "failed"}, {407, "", "failed"}, {409, "", "failed"},
		{410, "", "failed"}, {424, "", "failed"}, {426, "", "failed"}, {428, "", "failed"}, {499, "", "failed"},
		{600, "", "failed"}, {999, "", "failed"},
		{0, "timeout", "retry"}, {0, "dns", "retry"}, {0, "connection_refused", "retry"}, {0, "connection_reset", "retry"},
		{0, "tls", "retry"}, {0, "blocked_address", "retry"}, {0, "interrupted", "retry"}, {0, "protocol", "retry"},
		{0, "network", "retry"}, {0, "", "retry"}, {0, "request", "failed"},
		{200, "body_read", "delivered"}, {200, "timeout", "delivered"}, {204, "interrupted", "delivered"},
		{400, "body_read", "failed"}, {410, "timeout", "failed"}, {503, "timeout", "retry"},
	} {
		require.Equal(t, tc.want, delivery.Classify(tc.status, tc.class), "%d %q", tc.status, tc.class)
	}
	for status := range 1000 {
		require.Equal(t, status == 410, delivery.DisablesDestination(status))
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"0": 0, "1": time.Second, " 120 ": 2 * time.Minute, "007": 7 * time.Second,
		"3600": time.Hour, "3601": time.Hour, "99999999999999999999999": time.Hour,
		"-1": 0, "-99999999999999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(48 * time.Hour).Format(http.TimeFormat):   time.Hour,
		now.Add(-time.Second).Format(http.TimeFormat):     0,
		"Monday, 23-Nov-26 12:00:10 GMT":                  10 * time.Second, // RFC 850
		"Mon Nov 23 12:00:20 2026":                        20 * time.Second, // asctime
	} {
		got, ok := delivery.RetryAfter(header, now)
		require.True(t, ok, header)
		require.Equal(t, want, got, header)
	}
	for _, header := range []string{"", " ", "-", "--1", "+5", "1.5", "5s", "soon", "1e3", "0x10", "٣", "2026-11-23T12:00:10Z", "1, 2"} {
		_, ok := delivery.RetryAfter(header, now)
		require.False(t, ok, header)
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	day := delivery.Schedule{Type: "list", DelaysMS: []int64{86_400_000}}
	hour := delivery.Schedule{Type: "list", DelaysMS: []int64{3_600_000}}
	for name, tc := range map[string]struct {
		in   delivery.Attempted
		want delivery.Decision
	}{
		"delivered": {delivery.Attempted{Attempt: 1, Status: 204, RetryAfter: "5"},
			delivery.Decision{Outcome: "delivered", State: "delivered"}},
		"delivered by the last attempt": {delivery.Attempted{Attempt: 10, Status: 200},
			delivery.Decision{Outcome: "delivered", State: "delivered"}},
		"tried again": {delivery.Attempted{Attempt: 1, Status: 503},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: time.Second}},
		"tried again without an answer": {delivery.Attempted{Attempt: 9, Class: "timeout"},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: 256 * time.Second}},
		"the receiver asks for more": {delivery.Attempted{Attempt: 1, Status: 429, RetryAfter: "30"},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: 30 * time.Second}},
		"the receiver can't ask for less": {delivery.Attempted{Attempt: 4, Status: 429, RetryAfter: "0"},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: 8 * time.Second}},
		"the receiver can ask for an hour, which isn't parked": {delivery.Attempted{Attempt: 1, Status: 503, RetryAfter: "86400"},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: time.Hour}},
		"an hour isn't parked": {delivery.Attempted{Attempt: 1, Status: 500, Schedule: hour},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: time.Hour}},
		"more than an hour is parked": {delivery.Attempted{Attempt: 1, Status: 500, Schedule: day},
			delivery.Decision{Outcome: "retry", State: "pending", Delay: 24 * time.Hour, Park: true}},
		"the last attempt": {delivery.Attempted{Attempt: 10, Status: 503, RetryAfter: "30"},
			delivery.Decision{Outcome: "failed", State: "dead", Reason: "attempts_exhausted"}},
		"beyond the last attempt": {delivery.Attempted{Attempt: 11, Class: "dns"},
			delivery.Decision{Outcome: "failed", State: "dead", Reason: "attempts_exhausted"}},
		"a final answer": {delivery.Attempted{Attempt: 1, Status: 404},
			delivery.Decision{Outcome: "failed", State: "dead", Reason: "rejected"}},
		"gone": {delivery.Attempted{Attempt: 1, Status: 410},
			delivery.Decision{Outcome: "failed", State: "dead", Reason: "gone", DisableDestination: true}},
		"unsendable": {delivery.Attempted{Attempt: 1, Class: "request"},
			delivery.Decision{Outcome: "failed", State: "dead", Reason: "unsendable"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.in.Now, tc.in.Jitter = now, exactly
			require.Equal(t, tc.want, delivery.Decide(tc.in))
		})
	}
}

// Whatever a receiver answers, a delivery ends in a terminal state after at most the maximum of attempts, and what is
// said of each attempt fits what is said of the delivery.
func TestDecidePropertyDeliveriesEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		for attempt := 1; ; attempt++ {
			require.LessOrEqual(t, attempt, s.MaxAttempts)
			d := delivery.Decide(delivery.Attempted{
				Attempt: attempt, Schedule: s, Now: now,
				Status:     rapid.SampledFrom([]int{0, 429, 503, 503, 503, 200, 302, 410}).Draw(t, "status"),
				Class:      rapid.SampledFrom([]delivery.ErrorClass{"", "timeout", "body_read"}).Draw(t, "class"),
				RetryAfter: rapid.SampledFrom([]string{"", "7", "999999", "x"}).Draw(t, "retry after"),
				Jitter:     rapid.Float64Range(0, 1).Draw(t, "jitter"),
			})
			require.Equal(t, d.State == delivery.Pending, d.Outcome == delivery.OutcomeRetry)
			require.Equal(t, d.State == delivery.Delivered, d.Outcome == delivery.OutcomeDelivered)
			require.Equal(t, d.State == delivery.Dead, d.Reason != "")
			require.Equal(t, d.Delay > delivery.ParkAfter, d.Park)
			if d.State.Terminal() {
				require.Zero(t, d.Delay)
				return
			}
			least, _ := s.Next(attempt, 0)
			require.GreaterOrEqual(t, d.Delay, least)
			most, _ := s.Next(attempt, 1)
			require.LessOrEqual(t, d.Delay, max(most, delivery.MaxRetryAfter), "a receiver can ask for so much and no more")
		}
	})
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	for state, want := range map[delivery.State]bool{"pending": false, "delivered": true, "dead": true, "canceled": true, "skipped": true, "": false} {
		require.Equal(t, want, state.Terminal(), fmt.Sprintf("%q", state))
	}
}
