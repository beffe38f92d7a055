package main

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// accept stores a webhook whose acceptance is attested, and that goes nowhere.
func (s *sealedLog) accept(t *testing.T) uuid.UUID {
	t.Helper()
	event := id.New()
	_, err := postgres.Accept(t.Context(), s.engine, []*postgres.Acceptance{{
		EventID: event, TenantID: s.tenant, EndpointID: id.New(), LogID: s.log.ID, Headers: []byte{}, Body: []byte("personal"),
		PayloadHash: make([]byte, 32), Salt: make([]byte, 32), Secret: make([]byte, 32),
		Leaf: &postgres.AcceptedLeaf{Bytes: []byte("{}"), Hash: verify.LeafHash([]byte("{}")), Secrets: make([]byte, 64)},
	}})
	require.NoError(t, err)
	return event
}

func TestErase(t *testing.T) {
	t.Parallel()
	s := newSealedLog(t, 1)
	first, second := s.accept(t), s.accept(t)
	left := func(event uuid.UUID) (n int) {
		require.NoError(t, s.engine.QueryRow(t.Context(), `select (select count(*) from event_payloads where event_id = $1)
			+ (select count(*) from leaf_queue where attempt_id = $1 and secrets <> '')`, event).Scan(&n))
		return n
	}
	one, other := id.Event.Format(first), id.Event.Format(second)

	_, stderr, status := s.run(t, "kapsel erase "+one)
	require.Equal(t, 1, status)
	require.Equal(t, "kapsel: erasing 1 events can't be undone; add --yes if that is meant\n", stderr)
	_, stderr, status = s.run(t, "kapsel erase evt_x --yes")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, `"evt_x" is not an ID of the form evt_`)
	require.Equal(t, 2, left(first))

	stdout, _, status := s.run(t, "kapsel erase "+one+" --yes")
	require.Zero(t, status)
	require.Equal(t, one+"  erased; now: responses 0, leaves 1\n", stdout)
	require.Zero(t, left(first))
	require.Equal(t, 2, left(second))

	unknown := id.Event.Format(id.New())
	stdout, stderr, status = s.run(t, "kapsel erase "+other+" "+unknown+" --yes --leaves --json")
	require.Equal(t, 1, status)
	require.Contains(t, stdout, `"event_id":"`+other+`","leaves":true,"leaves_erased":1`)
	require.Contains(t, stderr, "there is no event "+unknown+"; 1 of 2 events are erased")
	require.Zero(t, left(second))
}
