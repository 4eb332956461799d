package consul

import (
	"cmp"
	"math"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
)

// Splitter is a service-splitter entry, which divides the requests to a service.
type Splitter struct {
	Splits []Split `yaml:"Splits"`
}

// Split is a share of the requests.
type Split struct {
	Weight        float64 `yaml:"Weight"`
	Service       string  `yaml:"Service"`
	ServiceSubset string  `yaml:"ServiceSubset"`
	Scope

	RequestHeaders  *Modifiers `yaml:"RequestHeaders"`
	ResponseHeaders *Modifiers `yaml:"ResponseHeaders"`
}

// hundredths converts a weight from percent to hundredths of a percent.
func hundredths(weight float32) int { return int(math.Round(float64(weight * 100))) }

// normal rounds a weight to a hundredth of a percent.
func normal(weight float32) float32 { return float32(hundredths(weight)) / 100 }

func (s *Splitter) check(doc *yamldoc.Document, e *Entry, _ *Environment) {
	if len(s.Splits) == 0 {
		doc.Errorf(e.At+"Splits", "missing: say how the requests are divided")
		return
	}
	sum := 0
	first := make(map[[2]string]int)
	for i := range s.Splits {
		split := &s.Splits[i]
		at := yamldoc.Index(e.At+"Splits", i)
		split.Scope.check(doc, at+".")
		checkTarget(doc, at, split.Service)
		if split.Weight < 0 || split.Weight > 100 {
			doc.Errorf(at+".Weight", "%v is out of range: it must be from 0 to 100", split.Weight)
		}
		sum += hundredths(float32(split.Weight))
		to := [2]string{cmp.Or(split.Service, e.Name), split.ServiceSubset}
		if split.RequestHeaders != nil || split.ResponseHeaders != nil {
			// Several shares may go to the same target if they change headers.
		} else if other, twice := first[to]; twice {
			doc.Errorf(at, "goes to the same as %s: make one split of both", yamldoc.Index(e.At+"Splits", other))
		} else {
			first[to] = i
		}
		split.RequestHeaders.check(doc, at+".RequestHeaders")
		split.ResponseHeaders.check(doc, at+".ResponseHeaders")
		reportTable(doc, at, route.Route{Destinations: []route.Destination{{Headers: split.headers()}}}, map[string]string{
			"Destinations[0].Headers.Request": ".RequestHeaders", "Destinations[0].Headers.Response": ".ResponseHeaders",
		})
	}
	if sum != 100_00 {
		doc.Errorf(e.At+"Splits", "the weights are %v together: they must be 100", float64(sum)/100)
	}
}

func (s *Split) headers() route.Headers {
	return route.Headers{Request: s.RequestHeaders.translate(), Response: s.ResponseHeaders.translate()}
}
