package worker

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

func claimedAt(destination uuid.UUID, due time.Time) postgres.Claimed {
	return postgres.Claimed{DeliveryID: id.New(), DestinationID: destination, DueAt: due}
}

// What was claimed isn't walked over again, apart from what may have become visible late.
func TestMarksSayHowFarEachQueueWasClaimed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m marks
		first, second, third := id.New(), id.New(), id.New()
		require.Zero(t, m.after(first), "nothing is known")
		now := time.Now()
		m.add([]postgres.Claimed{
			claimedAt(first, now.Add(-time.Minute)), claimedAt(first, now.Add(-time.Second)), claimedAt(first, now.Add(-time.Hour)),
			claimedAt(second, now.Add(-time.Hour)),
		})
		require.Equal(t, now.Add(-time.Second-markMargin), m.after(first), "the latest, with a margin")
		require.Equal(t, now.Add(-time.Hour-markMargin), m.after(second))
		require.Zero(t, m.after(third))
		m.add([]postgres.Claimed{claimedAt(first, now.Add(-30*time.Minute))})
		require.Equal(t, now.Add(-time.Second-markMargin), m.after(first), "never back")
		m.add(nil)
		require.Equal(t, now.Add(-time.Second-markMargin), m.after(first))
	})
}

// Marks are a hint: every so often everything is looked at, whatever was claimed meanwhile.
func TestMarksAreForgottenEverySoOften(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m marks
		destinations := []uuid.UUID{id.New(), id.New()}
		whole := map[uuid.UUID]int{}
		for range 100 { // 10 s
			for _, destination := range destinations {
				if m.after(destination).IsZero() {
					whole[destination]++
				}
				m.add([]postgres.Claimed{claimedAt(destination, time.Now())})
			}
			<-time.After(100 * time.Millisecond)
		}
		require.Equal(t, map[uuid.UUID]int{destinations[0]: 5, destinations[1]: 5}, whole, "in each two seconds once")
	})
}
