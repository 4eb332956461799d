package balancer_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

var algorithms = []balancer.Algorithm{
	balancer.LeastRequest, balancer.RoundRobin, balancer.Random, balancer.PeakEWMA, balancer.RingHash, balancer.Maglev,
	balancer.WeightedRoundRobin,
}

// BenchmarkPick is a pick at a time that the caller knows, and the end of its call.
func BenchmarkPick(b *testing.B) {
	type variant struct {
		name    string
		weights uint32 // weights go from 1 to this
		eject   int    // every how many endpoints is ejected, 0 for none
	}
	configs := map[string]balancer.Config{"short tail": {Algorithm: balancer.PeakEWMA, Choices: 10, Aperture: 10}}
	for _, algorithm := range algorithms {
		configs[algorithm.String()] = balancer.Config{Algorithm: algorithm}
	}
	for _, v := range []variant{{"plain", 1, 0}, {"weighted", 5, 0}, {"half_ejected", 1, 2}} {
		for _, name := range slices.Sorted(maps.Keys(configs)) {
			config := configs[name]
			for _, n := range []int{3, 100, 10_000} {
				if v.eject > 0 && n == 10_000 && config.Algorithm == balancer.Maglev {
					continue // its table is built anew for each ejection
				}
				b.Run(fmt.Sprintf("%v/%v/%d", v.name, name, n), func(b *testing.B) {
					bal := newBalancer(b, config)
					endpoints := endpoints(n)
					for i := range endpoints {
						endpoints[i].Weight = 1 + uint32(i)%v.weights
					}
					bal.Update(endpoints)
					for i, h := range bal.Hosts() {
						if v.eject > 0 && i%v.eject == 0 {
							h.SetEjected(true)
						}
					}
					now := time.Now()
					pick := func(b *testing.B, i int) {
						info := balancer.PickInfo{Hash: uint64(i) * 0x9e3779b97f4a7c15, HasHash: true, Now: now}
						if config.Algorithm == balancer.PeakEWMA { // the others do not look at the time, and adding to it takes a third of their pick
							info.Now = now.Add(time.Duration(i) * 10 * time.Microsecond)
						}
						h, err := bal.Pick(info)
						if err != nil {
							b.Fatal(err)
						}
						h.Release(time.Millisecond, false)
					}
					b.Run("alone", func(b *testing.B) {
						b.ReportAllocs()
						for i := range b.N {
							pick(b, i)
						}
					})
					b.Run("parallel", func(b *testing.B) {
						b.ReportAllocs()
						b.RunParallel(func(pb *testing.PB) {
							for i := 0; pb.Next(); i++ {
								pick(b, i)
							}
						})
					})
				})
			}
		}
	}
}

// BenchmarkUpdate is an update that adds or removes one endpoint of many.
func BenchmarkUpdate(b *testing.B) {
	for _, algorithm := range []balancer.Algorithm{balancer.LeastRequest, balancer.PeakEWMA, balancer.RingHash, balancer.Maglev} {
		b.Run(fmt.Sprintf("%v/10000", algorithm), func(b *testing.B) {
			bal := newBalancer(b, balancer.Config{Algorithm: algorithm})
			all := endpoints(10_000)
			sets := [2][]discovery.Endpoint{all, slices.Delete(slices.Clone(all), 5_000, 5_001)}
			bal.Update(all)
			b.ReportAllocs()
			for i := 1; b.Loop(); i++ {
				bal.Update(sets[i%2])
			}
		})
	}
}

// BenchmarkReports shows what reports cost: a pick by them, and the report of each answer.
func BenchmarkReports(b *testing.B) {
	for _, n := range []int{3, 100, 10_000} {
		for _, reported := range []bool{false, true} {
			bal := newBalancer(b, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
			bal.Update(endpoints(n))
			if reported {
				balancer.SetReported(bal, func(i int) float64 { return float64(1 + i%5) })
			}
			b.Run(fmt.Sprintf("pick, reported %v/%d", reported, n), func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					h, err := bal.Pick(balancer.PickInfo{})
					if err != nil {
						b.Fatal(err)
					}
					h.Release(time.Millisecond, false)
				}
			})
			if !reported {
				continue
			}
			hosts := bal.Hosts()
			b.Run(fmt.Sprintf("report/%d", n), func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					hosts[i%n].Report(0.5, 100, 0)
				}
			})
		}
	}
}
