// Sums of softplus(sign · x·y + bias), and gradients with its derivative, the logistic function.
// Both are computed from u = e^−|t| so that their small values keep their digits.

struct Softplus {
  vf sign, bias;

  vf logit(vf product) const { return product * sign + bias; }
  // e^−|t|; below the range of normal numbers it is the smallest of them.
  static vf decay(vf t) {
    return exp2(vmax((t < 0 ? t : -t) * 1.44269504f, splat(Exp2<real>::lowest)));
  }
  static vf log1p(vf u) {  // log(1 + u) for u in [0, 1]
    constexpr float polynomial[] = {-0.0032440247014164925f, 0.019851459190249443f,
                                    -0.05695952847599983f,   0.10603654384613037f,
                                    -0.15305592119693756f,   0.1967593878507614f,
                                    -0.24954134225845337f,   0.3332996368408203f,
                                    -0.4999990165233612f,    1.0f};
    vf p = splat(polynomial[0]);
    for (int n = 1; n < 10; ++n) p = p * u + polynomial[n];
    return p * u;
  }
  vf value(vf product) const {
    const vf t = logit(product);
    return vmax(t, vf{}) + log1p(decay(t));
  }
  vf slope(vf product) const {
    const vf t = logit(product), u = decay(t), r = 1.f / (1.f + u);
    return t < 0 ? u * r : r;
  }
  static double result(double sum) { return sum; }
};

static void softplus_forward(const Runtime& runtime, const LseProblem<real>& p, real bias,
                             real* panels, double* total, double* cosine) {
  forward_of(Softplus{splat(p.sign), splat(bias)}, runtime, p, panels, total, nullptr, cosine);
}

static void softplus_backward(const Runtime& runtime, const LseProblem<real>& p, real bias,
                              const LseGradients<real>& g) {
  backward_of(Softplus{splat(p.sign), splat(bias)}, runtime, p, g);
}
