package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestShareIsFairAmongTenants(t *testing.T) {
	t.Parallel()
	waiting := []Waiting[string]{{"a", 100}, {"a", 100}, {"a", 100}, {"b", 100}, {"c", 2}, {"d", 0}}
	require.Equal(t, []int{3, 3, 2, 8, 2, 0}, Share(waiting, 18))
	require.Equal(t, []int{1, 0, 0, 1, 0, 0}, Share(waiting, 2))
	require.Empty(t, Share([]Waiting[string]{}, 5))
}

func TestShareGivesEverythingAndNoMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		free := rapid.IntRange(0, 300).Draw(t, "free")
		n := rapid.IntRange(0, 30).Draw(t, "waiting")
		waiting := make([]Waiting[int], n)
		wanted := 0
		for i := range waiting {
			waiting[i] = Waiting[int]{rapid.IntRange(0, 5).Draw(t, "tenant"), rapid.IntRange(0, 40).Draw(t, "limit")}
			wanted += waiting[i].Limit
		}
		given, byTenant, wantedBy := 0, map[int]int{}, map[int]int{}
		for i, share := range Share(waiting, free) {
			require.LessOrEqual(t, share, waiting[i].Limit)
			given += share
			byTenant[waiting[i].Tenant] += share
			wantedBy[waiting[i].Tenant] += waiting[i].Limit
		}
		require.Equal(t, min(free, wanted), given)
		for a := range wantedBy { // nobody who wanted more got two less than another
			for b := range wantedBy {
				if byTenant[a] < wantedBy[a] {
					require.LessOrEqual(t, byTenant[b], byTenant[a]+1)
				}
			}
		}
	})
}
