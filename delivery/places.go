package delivery

// Claimant is a destination with something due.
type Claimant[T comparable] struct {
	Tenant T
	// Holds is how many places it has already.
	Holds int
	// Limit is how many more it may have at most.
	Limit int
	// Doubtful: it isn't known to answer quickly, so a place that it gets may be gone for as long as its timeout.
	Doubtful bool
}

// Held is how many places doubtful destinations have already, also those that claim nothing now.
type Held[T comparable] struct {
	All      int
	ByTenant map[T]int
}

// Places gives out free ones of so many places. Destinations that answer quickly share them as Share does, and one alone may
// have all. Doubtful ones have half of the places together. Of that half a tenant may have twice as many as it leaves free, and
// a destination as many as it leaves free of what its tenant may have (the rule of "dynamic thresholds" by which switches share
// a buffer among ports: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). However many hang, the next one
// finds a place, also one of the same tenant; a tenant leaves a third to the others; who answers quickly has the other half.
func Places[T comparable](claimants []Claimant[T], held Held[T], places, free int) []int {
	doubtful := doubtfulPlaces(claimants, held, places/2, free)
	waiting := make([]Waiting[T], len(claimants))
	for i, c := range claimants {
		waiting[i] = Waiting[T]{Tenant: c.Tenant, Limit: c.Limit}
		if c.Doubtful {
			waiting[i].Limit = doubtful[i]
		}
	}
	return Share(waiting, free)
}

// doubtfulPlaces is how many of the places for doubtful destinations each may have.
func doubtfulPlaces[T comparable](claimants []Claimant[T], held Held[T], places, free int) []int {
	left := max(places-held.All, 0)
	byTenant, rooms := map[T][]int{}, map[T]int{}
	waiting := make([]Waiting[T], len(claimants))
	for i, c := range claimants {
		if !c.Doubtful {
			continue
		}
		rooms[c.Tenant] = untilLeft(2*left, held.ByTenant[c.Tenant], 2)
		waiting[i] = Waiting[T]{Tenant: c.Tenant, Limit: min(c.Limit, untilLeft(rooms[c.Tenant], c.Holds, 1))}
		byTenant[c.Tenant] = append(byTenant[c.Tenant], i)
	}
	for tenant, own := range byTenant {
		shares := make([]Waiting[T], len(own))
		for j, i := range own {
			shares[j] = waiting[i]
		}
		for j, n := range Share(shares, rooms[tenant]) {
			waiting[own[j]].Limit = n
		}
	}
	return Share(waiting, min(free, left))
}

// untilLeft is how many more somebody who holds some may take until he has as many as left is then, if each place that he takes
// makes left so many times smaller by one.
func untilLeft(left, holds, times int) int { return max((left-holds+times)/(times+1), 0) }
