package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/webhook"
)

var bothLanes = []client.Lane{client.Workflow, client.Batch}

// barrier returns when the dispatcher has looked at the queue several times since it was called.
func (s *testStack) barrier(t *testing.T) {
	t.Helper()
	healthy := startReceiver(t, ok)
	endpoint := s.createEndpoint(t, client.NewDestination{URL: healthy.URL})
	for i := range 5 {
		s.mustIngest(t, endpoint, fmt.Sprint("barrier ", i))
		s.awaitDelivered(t, endpoint.Destinations[0], i+1)
	}
}

// While a destination is paused nothing is sent to it, and what waits uses up no attempt: neither what came meanwhile nor
// what was being carried already. After the resume all of it goes out within seconds.
func TestPauseAndResume(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range bothLanes {
		t.Run(string(lane), func(t *testing.T) {
			flaky := startReceiver(t, failing(1))
			endpoint := s.createLane(t, lane, client.NewDestination{URL: flaky.URL, Schedule: schedule(4000, 100)})
			destination := endpoint.Destinations[0]
			const before, meanwhile = 20, 30
			for i := range before {
				s.mustIngest(t, endpoint, fmt.Sprint("before ", i))
			}
			require.Eventually(t, func() bool { return s.to(t, destination, "next_attempt = 2 and state = 'pending'") == before },
				time.Minute, 20*time.Millisecond, "each has failed once and waits")
			paused, err := s.api.PauseDestinationWithResponse(t.Context(), destination.ID)
			require.NoError(t, err)
			require.NotNil(t, paused.JSON200.PausedAt)
			for i := range meanwhile {
				s.mustIngest(t, endpoint, fmt.Sprint("meanwhile ", i))
			}
			destinationID, err := id.Destination.Parse(destination.ID)
			require.NoError(t, err)
			s.awaitZero(t, time.Minute, `select $2 - count(*) from delivery_queue where destination_id = $1 and claim_id is null and due_at <= now()`,
				destinationID, before+meanwhile) // all are due, and nobody carries them
			s.barrier(t)
			flaky.requireTimes(t, before, 1)
			require.Equal(t, before, s.to(t, destination, "next_attempt = 2 and state = 'pending'"), "no attempt is used up")
			require.Equal(t, meanwhile, s.to(t, destination, "next_attempt = 1 and state = 'pending'"))

			resumed, err := s.api.ResumeDestinationWithResponse(t.Context(), destination.ID)
			require.NoError(t, err)
			require.Nil(t, resumed.JSON200.PausedAt)
			require.Eventually(t, func() bool {
				return s.to(t, destination, "next_attempt = 2 and state = 'pending'")+s.to(t, destination, "state = 'delivered'") == before+meanwhile
			},
				15*time.Second, 20*time.Millisecond, "all go out within seconds")
			s.awaitDelivered(t, destination, before+meanwhile)
			flaky.requireTimes(t, before+meanwhile, 2)
		})
	}
	s.awaitSealed(t, time.Minute)
	require.Zero(t, s.lostStarts(t))
	s.checkRecord(t)
}

// What waits for a destination that is deleted is canceled, each delivery with a leaf that says so; nothing more is sent to
// it, and others get theirs.
func TestDeletedDestination(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range bothLanes {
		t.Run(string(lane), func(t *testing.T) {
			failed, healthy := startReceiver(t, failing(1000)), startReceiver(t, ok)
			endpoint := s.createLane(t, lane, client.NewDestination{URL: failed.URL, Schedule: schedule(4000, 4000)}, client.NewDestination{URL: healthy.URL})
			deleted, other := endpoint.Destinations[0], endpoint.Destinations[1]
			const events = 20
			for i := range events {
				s.mustIngest(t, endpoint, fmt.Sprint("before ", i))
			}
			require.Eventually(t, func() bool { return s.to(t, deleted, "next_attempt = 2 and state = 'pending'") == events },
				time.Minute, 20*time.Millisecond, "each has failed once and waits")
			_, err := s.api.PauseDestinationWithResponse(t.Context(), deleted.ID)
			require.NoError(t, err)
			for i := range events {
				s.mustIngest(t, endpoint, fmt.Sprint("never tried ", i))
			}
			answer, err := s.api.DeleteDestinationWithResponse(t.Context(), deleted.ID)
			require.NoError(t, err)
			require.Equal(t, http.StatusNoContent, answer.StatusCode())
			require.Eventually(t, func() bool { return s.to(t, deleted, "state = 'canceled'") == 2*events }, time.Minute, 20*time.Millisecond)
			failed.requireTimes(t, events, 1)
			s.mustIngest(t, endpoint, "afterwards")
			s.awaitDelivered(t, other, 2*events+1)
			require.Equal(t, 2*events, s.to(t, deleted, "true"), "nothing more is made for it")
		})
	}
	s.awaitSealed(t, time.Minute)
	require.Equal(t, 80, s.count(t, "select count(*) from attempts where kind = 'canceled' and outcome = 'destination_deleted'"))
	require.Zero(t, s.lostStarts(t))
	s.checkRecord(t)
}

// signatures remembers which of its secrets have signed the last request.
type signatures struct {
	mu   sync.Mutex
	last http.Header
}

func (s *signatures) answer(_ int, _ http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r.Header.Clone()
}

// signedBy reports whether each secret has signed the last request, whose body is empty.
func (s *signatures) signedBy(t *testing.T, secrets ...string) (signed []bool) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var seconds int64
	_, err := fmt.Sscan(s.last.Get(webhook.HeaderWebhookTimestamp), &seconds)
	require.NoError(t, err)
	for _, secret := range secrets {
		key, err := webhook.ParseSigningSecret(secret)
		require.NoError(t, err)
		want := webhook.SignStandard(s.last.Get(webhook.HeaderWebhookID), time.Unix(seconds, 0), nil, [][]byte{key})
		signed = append(signed, strings.Contains(s.last.Get(webhook.HeaderWebhookSignature), want))
	}
	return signed
}

// While a secret is being rotated both sign, so that the receiver can change over when it likes.
func TestRotatedSecretsOverlap(t *testing.T) {
	s := startTestStack(t)
	for _, lane := range bothLanes {
		var seen signatures
		receiver := startReceiver(t, seen.answer)
		endpoint := s.createLane(t, lane, client.NewDestination{URL: receiver.URL})
		destination, old := endpoint.Destinations[0], *endpoint.Destinations[0].SigningSecret
		deliver := func(n int) {
			s.mustIngest(t, endpoint, "")
			s.awaitDelivered(t, destination, n)
		}
		deliver(1)
		require.Equal(t, []bool{true}, seen.signedBy(t, old))
		added, err := s.api.AddSigningSecretWithResponse(t.Context(), destination.ID, client.NewSigningSecret{})
		require.NoError(t, err)
		deliver(2)
		require.Equal(t, []bool{true, true}, seen.signedBy(t, old, *added.JSON201.Secret))
		list, err := s.api.ListSigningSecretsWithResponse(t.Context(), destination.ID)
		require.NoError(t, err)
		require.Len(t, list.JSON200.Data, 2)
		gone, err := s.api.DeleteSigningSecretWithResponse(t.Context(), destination.ID, list.JSON200.Data[1].ID)
		require.NoError(t, err)
		require.Equal(t, http.StatusNoContent, gone.StatusCode())
		deliver(3)
		require.Equal(t, []bool{false, true}, seen.signedBy(t, old, *added.JSON201.Secret))
	}
}
