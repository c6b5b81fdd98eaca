// One step of a program. Each kind of step is a class of its own in steps/, which says all that there is to know of it:
// how it is read from the list, what is packed of it, what a plan must know, and how it runs. All other code asks steps
// and knows no kind.
#pragma once
#include "channels.h"

namespace ghost {

struct Map;
struct FeatureRows;
struct StepPlan;
class Packer;
class ProgramRun;

/// A map that a step reads: what a step before it writes, or a view of some of its channels.
struct Source {
  int64_t step = -1;
  int64_t lane = 0;  // of the step's map, in which the first channel is
  Channels channels;
};

/// Height and width.
struct Size {
  int64_t h, w;
  bool operator==(const Size& other) const { return h == other.h && w == other.w; }
};

/// A convolution or linear layer with its BatchNorm and activation, and where its pieces are in the packed tensor.
struct Layer {
  bool has_bias = false, has_norm = false, has_gamma = false, has_beta = false, has_slopes = false;  // as parameters
  double eps = 0, slope = 0;
  Act act = kNone;
  int64_t weight = 0, bias = 0, slopes = 0;  // in floats
  int64_t raw = -1;                          // its number among the layers whose weights are read where they are
  bool packs_slopes() const { return slope_kind(act) != kNoSlope; }
};

/// Rows [first, end) of a map.
struct RowRange {
  int64_t first, end;
};

/// Rows and columns of a step's output that are one thread's share.
struct Region {
  int64_t row0, row1, c0, c1;
};

/// Rows [y, y + count) and columns [c0, c1) of a step's output that share `share` makes now.
struct RowTask {
  int64_t y, count, c0, c1, share;
  float* sums;  // to which the rows are added where their squeeze is wanted, else null
};

/// What a step costs, in multiply-adds of a pixel (of an image, where it does not make a map), and how it may be cut.
struct Work {
  int64_t products = 0, taps = 0;  // of matrix products, of depthwise convolutions
  int64_t border = 0;              // rows of the input on either side of a row
  bool by_columns = false;         // threads may share its columns
  bool mixes_channels = false;     // each column is made of all channels of the input
};

/// Memory that a step works in, in floats.
struct Needs {
  int64_t zeros = 0;          // a row outside of a map
  int64_t scratch = 0;        // of the step, from its first row to its last
  int64_t share_scratch = 0;  // of a share, while it makes rows
  int64_t image_scratch = 0;  // of each image, while the step runs
  int64_t sums = 0;           // of a share, for the squeeze
  int64_t features = 0;       // a row of features
};

class Step {
 public:
  int64_t index = 0;            // among the program's steps
  std::vector<Source> sources;  // the maps that it reads
  int64_t residual = -1;        // among them the one whose rows are read where rows are finished
  std::vector<int64_t> like;    // steps whose maps' sizes it knows beside those of its sources
  int64_t out = -1;             // slot that its map goes into
  bool squeeze = false;         // the means of its map's channels are wanted
  bool whole_vectors = true;    // whole vectors of its map may be read
  int64_t channels = 0;         // of its input
  int64_t columns = 0;          // of its output, as threads share them
  Channels out_channels;
  int64_t packed_end = 0;      // where its pieces end in the packed tensor
  int64_t features_place = 0;  // among the steps that begin features
  int64_t container = -1;      // the step in whose map its own is: itself, or a concatenation
  int64_t container_lane = 0;  // where it begins there

  virtual ~Step() = default;

  /// Its output has the channels of its input, and threads share all lanes.
  void keep_channels() { out_channels = sources[0].channels, columns = out_channels.width(); }

  // Its place in a program.
  virtual bool is_entry() const { return false; }          // it reads the program's input
  virtual bool returns_map() const { return false; }       // a map is a result of the program
  virtual bool returns_features() const { return false; }  // the features as they are now are a result
  virtual bool makes_features() const { return false; }    // N x C in place of a map
  virtual bool begins_features() const { return false; }   // these are made of a map, an image at a time
  virtual bool makes_all_rows_at_once() const { return false; }
  /// Whether the input's map is read where it is, in place of a copy.
  virtual bool reads_in_place(const Map& /*x*/) const { return false; }
  /// Whether its rows may be made in the caller's map, whose channels are not padded.
  virtual bool writes_in_place(const Map& /*out*/) const { return false; }
  /// Whether its map may hold what it reads, where that is: it is a concatenation.
  virtual bool holds_sources() const { return false; }

  /// Packs its parameters, in the order in which the list of parameters has them.
  virtual void pack(Packer&) const {}

  // What a plan must know.
  /// Sets h and w from in_h and in_w; false where the kernel does not fit.
  virtual bool set_size(StepPlan&) const { return true; }
  virtual Work work() const { return {}; }
  virtual Needs needs(const StepPlan&) const;
  /// Phases in which several shares run it; all shares of one are done before the next.
  virtual int64_t phases(const StepPlan&) const;
  virtual int64_t rows_at_once(const StepPlan&) const;
  /// Whether all its rows are better made at once: its weights outweigh a few rows.
  virtual bool is_apart(const StepPlan&) const { return false; }
  /// Rows of a source, but the residual, that rows of the output are begun from; they may reach over its border.
  virtual RowRange input_rows(int64_t first, int64_t end) const { return {first, end}; }
  virtual RowRange source_rows(const StepPlan&, int64_t /*source*/, int64_t first, int64_t end) const {
    return input_rows(first, end);
  }
  /// Whether rows are made in two stages, make_rows and finish_rows, the first being `halo` rows ahead.
  virtual bool has_two_stages() const { return false; }
  virtual int64_t halo() const { return 0; }
  /// Floats of a pixel that rows which are not finished keep apart from the output.
  virtual int64_t unfinished_pixel() const { return 0; }
  /// Bits of what only one step of a run may do: sums for the squeeze are in one place, and wide rows of more than one
  /// step would not stay in cache.
  virtual unsigned once_a_run() const { return squeeze; }
  /// Whether make_rows writes into the output.
  virtual bool makes_output() const { return true; }

  // How it runs.
  /// One share of a phase. As it is here it makes rows, and then their squeeze.
  virtual void run_phase(ProgramRun&, int64_t phase, int64_t share) const;
  /// Before the first row.
  virtual void start(ProgramRun&) const {}
  virtual void make_rows(ProgramRun&, const RowTask&) const {}
  virtual void finish_rows(ProgramRun&, const RowTask&) const {}
  /// The means of a region's channels, in the order of the channels, from the sums of `shares` shares.
  virtual void take_means(ProgramRun&, const Region&, int64_t share, int64_t shares) const;
  /// Runs it for so many images, of which this is the first, if that is better than one after the other.
  virtual bool run_images(ProgramRun&, int64_t /*images*/) const { return false; }
  /// Makes rows of features from others, if that is what it does.
  virtual bool run_features(const FeatureRows&) const { return false; }
};

}  // namespace ghost
