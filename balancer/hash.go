package balancer

import "github.com/cespare/xxhash/v2"

// Hash returns the hash of a key for [PickInfo]: xxHash64 with seed 0. The hash, the ring and the table are the same in
// every process and every release of this major version; testdata/golden.txt pins them.
func Hash(key string) uint64 { return xxhash.Sum64String(key) }

// mix spreads x over all bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// rehash returns the hash for a further try. Calls that cannot go where their key says are spread over all hosts; otherwise
// the next host on a ring would get all the calls of its neighbour.
func rehash(hash uint64, try int) uint64 {
	if try == 0 {
		return hash
	}
	return mix(hash + uint64(try)*goldenRatio)
}
