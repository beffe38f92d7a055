package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestPlacesLetsOneThatAnswersQuicklyHaveAll(t *testing.T) {
	t.Parallel()
	quick := []Claimant[string]{{Tenant: "a", Limit: 1000}}
	require.Equal(t, []int{200}, Places(quick, Held[string]{}, 200, 200))
	require.Equal(t, []int{3}, Places(quick, Held[string]{All: 500}, 200, 3))
}

// hang lets doubtful destinations of tenants take places, one claim of one after the other, until none gets any more.
func hang(tenants []string, places int) (holds []int, held Held[string]) {
	held.ByTenant = map[string]int{}
	holds = make([]int, len(tenants))
	for gained := true; gained; {
		gained = false
		for i, tenant := range tenants {
			c := []Claimant[string]{{Tenant: tenant, Holds: holds[i], Limit: 1000, Doubtful: true}}
			n := Places(c, held, places, places-held.All)[0]
			holds[i], held.All, held.ByTenant[tenant] = holds[i]+n, held.All+n, held.ByTenant[tenant]+n
			gained = gained || n > 0
		}
	}
	return holds, held
}

func TestPlacesKeepsSomeForTheNext(t *testing.T) {
	t.Parallel()
	holds, held := hang([]string{"a"}, 200)
	require.Equal(t, []int{34}, holds, "as many as it leaves of the two thirds that its tenant may have")
	next := func(tenant string) int {
		all := Places([]Claimant[string]{{Tenant: tenant, Limit: 1000, Doubtful: true}, {Tenant: "c", Limit: 1000}}, held, 200, 200-held.All)
		require.GreaterOrEqual(t, all[1], 100, "who answers quickly has half")
		return all[0]
	}
	require.Equal(t, 17, next("a"), "the next one of the same tenant")
	require.Equal(t, 22, next("b"))

	many := make([]string, 1000) // of one tenant
	_, held = hang(many, 200)
	require.Equal(t, 67, held.All, "a tenant leaves a third to others, however many destinations it has")
	require.Equal(t, 11, next("b"))
}

// However many hang, whose they are, and in which order they come: those that answer quickly have half of the places, and
// what is given out is free and asked for.
func TestPlacesProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.IntRange(2, 300).Draw(t, "places")
		held := Held[int]{ByTenant: map[int]int{}}
		holds := map[int]int{} // by destination, whose tenant is the remainder by 4
		inAll := 0
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			var due []int
			var claimants []Claimant[int]
			for range rapid.IntRange(1, 12).Draw(t, "due") {
				d := rapid.IntRange(0, 500).Draw(t, "destination")
				due = append(due, d)
				claimants = append(claimants, Claimant[int]{Tenant: d % 4, Holds: holds[d], Limit: rapid.IntRange(0, 400).Draw(t, "limit"), Doubtful: d%2 == 0})
				if d%2 == 0 {
					held.ByTenant[d%4] += 0
				}
			}
			free := places - inAll
			given := 0
			for i, n := range Places(claimants, held, places, free) {
				require.LessOrEqual(t, n, claimants[i].Limit)
				given += n
				if claimants[i].Doubtful { // the others answer at once
					inAll += n
					held.All += n
					held.ByTenant[claimants[i].Tenant] += n
					holds[due[i]] += n
				}
			}
			require.LessOrEqual(t, given, free)
			require.LessOrEqual(t, held.All, places/2)
		}
		quick := []Claimant[int]{{Tenant: 9, Limit: 1000}}
		require.Equal(t, []int{places - inAll}, Places(quick, held, places, places-inAll))
		require.GreaterOrEqual(t, places-inAll, places/2)
	})
}
