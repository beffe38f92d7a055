package delivery

// Waiting is somebody who waits for free places: a destination of a tenant.
type Waiting[T comparable] struct {
	Tenant T
	// Limit is how many places it can use at most.
	Limit int
}

// Share gives out free places among those who wait, one at a time and round robin: first among tenants, then among the
// destinations of each, so that neither many destinations nor a long queue gets a tenant more than its share while
// others wait. The result has one count for each of waiting, in order.
func Share[T comparable](waiting []Waiting[T], free int) []int {
	shares := make([]int, len(waiting))
	var tenants [][]int // the destinations that can still use a place, by tenant
	index := map[T]int{}
	for i, w := range waiting {
		if w.Limit <= 0 {
			continue
		}
		t, known := index[w.Tenant]
		if !known {
			t = len(tenants)
			index[w.Tenant] = t
			tenants = append(tenants, nil)
		}
		tenants[t] = append(tenants[t], i)
	}
	for free > 0 && len(tenants) > 0 {
		left := tenants[:0]
		for _, queue := range tenants {
			if free == 0 {
				break
			}
			i := queue[0]
			queue = queue[1:]
			shares[i]++
			free--
			if shares[i] < waiting[i].Limit {
				queue = append(queue, i)
			}
			if len(queue) > 0 {
				left = append(left, queue)
			}
		}
		tenants = left
	}
	return shares
}
