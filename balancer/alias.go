package balancer

import "math/bits"

// alias draws indices in proportion to weights, in constant time (Vose's form of Walker's alias method). The zero value
// draws from equal weights.
type alias []column

// column is one of n equal parts of the whole: its part own belongs to the column's index, the rest to other.
type column struct {
	own   uint64 // of 1<<64
	other uint32
}

// newAlias returns the table for the weights, which must not all be 0, and nil if all are equal.
func newAlias(weights []float64) alias {
	sum, equal := 0.0, true
	for _, w := range weights {
		sum += w
		equal = equal && w == weights[0]
	}
	if equal {
		return nil
	}
	n := len(weights)
	table := make(alias, n)
	parts := make([]float64, n) // in units of a column
	order := make([]uint32, n)  // indices with less than a column from the left, the others from the right
	small, large := 0, n
	for i, w := range weights {
		parts[i] = w / sum * float64(n)
		if parts[i] < 1 {
			order[small] = uint32(i)
			small++
		} else {
			large--
			order[large] = uint32(i)
		}
	}
	for small > 0 && large < n {
		small--
		less, more := order[small], order[large]
		table[less] = column{fixedPoint(parts[less]), more}
		parts[more] -= 1 - parts[less]
		if parts[more] < 1 {
			order[small] = more
			small++
			large++
		}
	}
	// What is left is a whole column, apart from rounding.
	for _, i := range order[:small] {
		table[i] = column{1<<64 - 1, i}
	}
	for _, i := range order[large:] {
		table[i] = column{1<<64 - 1, i}
	}
	return table
}

// at returns the index out of n that r, a number evenly spread over 64 bits, falls on.
func (a alias) at(r uint64, n int) int {
	i, rest := bits.Mul64(r, uint64(n))
	if a == nil || rest < a[i].own {
		return int(i)
	}
	return int(a[i].other)
}

// fixedPoint returns a fraction in units of 1/1<<64.
func fixedPoint(f float64) uint64 {
	if f <= 0 {
		return 0
	}
	return uint64(f*(1<<53)) << 11
}
