"""Tables as the generator renders them, small and made by hand."""

from normgate.table_types import GroupTable, KernelTable, ModelTable, VariantRange

KERNELS: dict[str, KernelTable] = {
    "norm_b_gate_64x12_bf16_bf16_fp32": KernelTable(
        kernel="norm_b_gate_64x12_bf16_bf16_fp32",
        hidden_size=64,
        num_experts=12,
        activation_dtype="bfloat16",
        gate_weight_dtype="bfloat16",
        logits_dtype="float32",
        norm_order="B",
        gate_bias=False,
        logits_from="unrounded",
        groups=(
            GroupTable(
                sm_targets=(80, 86),
                variants=(
                    VariantRange(
                        name="gemv_t8",
                        function="norm_b_gate_64x12_bf16_bf16_fp32_gemv_t8_sm80",
                        first_token=1,
                        last_token=None,
                        why="no clusters below sm_90",
                        rejected=(),
                    ),
                ),
            ),
            GroupTable(
                sm_targets=(90, 100, 120),
                variants=(
                    VariantRange(
                        name="gemv_t1",
                        function="norm_b_gate_64x12_bf16_bf16_fp32_gemv_t1_sm90",
                        first_token=1,
                        last_token=1,
                        why="fewest bytes for one token",
                        rejected=(("split_k_t16", "2 tokens are the least it pays for"),),
                    ),
                    VariantRange(
                        name="gemv_t4",
                        function="norm_b_gate_64x12_bf16_bf16_fp32_gemv_t4_sm90",
                        first_token=2,
                        last_token=4,
                        why="x fits in registers",
                        rejected=(
                            (
                                "gemv_t1",
                                "it reads the gate weight again for every token, 4 times at 4 tokens",
                            ),
                            ("split_k_t16", "the cluster reduce costs more than it saves below 5 tokens"),
                        ),
                    ),
                    VariantRange(
                        name="split_k_t16",
                        function="norm_b_gate_64x12_bf16_bf16_fp32_split_k_t16_sm90",
                        first_token=5,
                        last_token=None,
                        why="tensor cores read each gate weight once",
                        rejected=(("gemv_t4", "x is read and converted once for each expert"),),
                    ),
                ),
            ),
        ),
    ),
    "norm_a_gate_64x12_bf16_fp32_fp32_bias": KernelTable(
        kernel="norm_a_gate_64x12_bf16_fp32_fp32_bias",
        hidden_size=64,
        num_experts=12,
        activation_dtype="bfloat16",
        gate_weight_dtype="float32",
        logits_dtype="float32",
        norm_order="A",
        gate_bias=True,
        logits_from="unrounded",
        groups=(
            GroupTable(
                sm_targets=(90,),
                variants=(
                    VariantRange(
                        name="gemv_t8",
                        function="norm_a_gate_64x12_bf16_fp32_fp32_bias_gemv_t8_sm90",
                        first_token=1,
                        last_token=None,
                        why="the only one that was generated",
                        rejected=(),
                    ),
                ),
            ),
        ),
    ),
    "gate_64x12_bf16_bf16_fp32": KernelTable(
        kernel="gate_64x12_bf16_bf16_fp32",
        hidden_size=64,
        num_experts=12,
        activation_dtype="bfloat16",
        gate_weight_dtype="bfloat16",
        logits_dtype="float32",
        norm_order=None,
        gate_bias=False,
        logits_from="unrounded",
        groups=(
            GroupTable(
                sm_targets=(90,),
                variants=(
                    VariantRange(
                        name="gemv_t8",
                        function="gate_64x12_bf16_bf16_fp32_gemv_t8_sm90",
                        first_token=1,
                        last_token=None,
                        why="the only one that was generated",
                        rejected=(),
                    ),
                ),
            ),
        ),
    ),
}

MODELS: dict[str, ModelTable] = {
    "hashed": ModelTable(
        model="hashed",
        kernel="norm_b_gate_64x12_bf16_bf16_fp32",
        eps=1e-6,
        top_k=6,
        e_score_correction_bias=True,
        tid2eid_vocab_size=100,
    ),
    "biased": ModelTable(
        model="biased",
        kernel="norm_a_gate_64x12_bf16_fp32_fp32_bias",
        eps=1e-5,
        top_k=4,
        e_score_correction_bias=False,
        tid2eid_vocab_size=None,
    ),
    "normed-before": ModelTable(
        model="normed-before",
        kernel="gate_64x12_bf16_bf16_fp32",
        eps=None,
        top_k=2,
        e_score_correction_bias=False,
        tid2eid_vocab_size=None,
    ),
}
