package postgres_test

import (
	"crypto/sha256"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func (b *testBundle) keyed(body, key string, window time.Duration) *postgres.Acceptance {
	row := b.acceptance(body)
	keyHash, bodyHash := sha256.Sum256([]byte(key)), sha256.Sum256([]byte(body))
	row.Duplicate = &postgres.DuplicateKey{Hash: keyHash[:], BodyHash: bodyHash[:], Window: window}
	return row
}

func TestAcceptStoresEventDeliveriesAndQueueTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	row := b.acceptance("hello")
	second := b.addDestination(t, b.tenant, b.endpoint)
	row.Deliveries = append(row.Deliveries, postgres.NewDelivery{ID: id.At(row.EventID), DestinationID: second})
	accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	require.Equal(t, []postgres.Accepted{{EventID: row.EventID}}, accepted)
	require.Equal(t, 1, b.count(t, "select count(*) from events e join event_payloads p on p.event_id = e.id where e.id = $1 and p.body = 'hello'", row.EventID))
	require.Equal(t, 2, b.count(t, `select count(*) from deliveries d join delivery_queue q on q.delivery_id = d.id
		where d.event_id = $1 and d.state = 'pending' and d.epoch = 0 and d.next_attempt = 1 and q.due_at <= now()`, row.EventID))
}

func TestAcceptKeepsNothingOfAFailedGroup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bad := b.acceptance("bad")
	bad.PayloadHash = []byte("short")
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{b.keyed("a", "k", time.Hour), bad})
	require.Error(t, err)
	for _, table := range []string{"events", "event_payloads", "deliveries", "delivery_queue", "dedup"} {
		require.Zero(t, b.count(t, "select count(*) from "+table), table)
	}
}

func TestAcceptFindsDuplicatesInTheSameGroup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, same, other := b.keyed("a", "k", time.Hour), b.keyed("a", "k", time.Hour), b.keyed("b", "k", time.Hour)
	accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{first, same, other})
	require.NoError(t, err)
	require.Equal(t, []postgres.Accepted{
		{EventID: first.EventID},
		{EventID: first.EventID, Duplicate: true},
		{EventID: first.EventID, Duplicate: true, BodyDiffers: true},
	}, accepted)
	require.Equal(t, 1, b.count(t, "select count(*) from events"))
}

func TestAcceptFindsDuplicatesOfEarlierGroupsAndDays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.keyed("a", "k", 48*time.Hour)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{first})
	require.NoError(t, err)
	again := func() postgres.Accepted {
		accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{b.keyed("a", "k", 48*time.Hour)})
		require.NoError(t, err)
		return accepted[0]
	}
	require.Equal(t, postgres.Accepted{EventID: first.EventID, Duplicate: true}, again())

	// Yesterday's entry counts while its window runs, and not after.
	b.exec(t, "delete from dedup where day > (now() at time zone 'utc')::date")
	b.exec(t, "update dedup set day = day - 1, accepted_at = accepted_at - interval '1 day', expires_at = expires_at - interval '1 day'")
	require.Equal(t, postgres.Accepted{EventID: first.EventID, Duplicate: true}, again())
	b.exec(t, "update dedup set expires_at = now()")
	require.False(t, again().Duplicate)
}

func TestAcceptTakesAnExpiredKeyOfToday(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 2 {
		accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{b.keyed("a", "k", time.Hour)})
		require.NoError(t, err)
		require.False(t, accepted[0].Duplicate)
		b.exec(t, "update dedup set expires_at = now()")
	}
	require.Equal(t, 2, b.count(t, "select count(*) from events"))
}

func TestAcceptKeepsKeysOfEndpointsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tenant, endpoint, destination := b.addTenant(t, "another")
	mine, theirs := b.keyed("a", "k", time.Hour), b.keyed("a", "k", time.Hour)
	theirs.TenantID, theirs.EndpointID, theirs.Deliveries[0].DestinationID = tenant, endpoint, destination
	accepted, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{mine, theirs})
	require.NoError(t, err)
	require.False(t, accepted[0].Duplicate)
	require.False(t, accepted[1].Duplicate)
}

// Many transactions at once with overlapping keys in different orders: one event per key, and no deadlock.
func TestAcceptConcurrentlyStoresOneEventPerKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const callers, keys = 12, 20
	var wait sync.WaitGroup
	var mu sync.Mutex
	holders := map[int]map[uuid.UUID]bool{}
	for c := range callers {
		wait.Go(func() {
			var rows []*postgres.Acceptance
			for k := range keys {
				k = (k*7 + c) % keys
				rows = append(rows, b.keyed("a", string(rune('a'+k)), time.Hour))
			}
			accepted, err := postgres.Accept(t.Context(), b.engine, rows)
			require.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			for k, a := range accepted {
				k = (k*7 + c) % keys
				if holders[k] == nil {
					holders[k] = map[uuid.UUID]bool{}
				}
				holders[k][a.EventID] = true
			}
		})
	}
	wait.Wait()
	require.Equal(t, keys, b.count(t, "select count(*) from events"))
	for k, events := range holders {
		require.Len(t, events, 1, "key %d", k)
	}
}
