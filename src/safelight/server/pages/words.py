"""The pages' words in Chinese, by their English."""
from __future__ import annotations

CHINESE = {
    "Generate": "生成", "Datasets": "数据集", "Train": "训练", "Gallery": "图库", "Models": "模型", "Queue": "队列",
    "A darkroom for latent images": "潜影的暗房", "Skip to the content": "跳到正文", "Pages": "页面", "Language": "语言",
    "Light": "浅色", "Dark": "深色",
    "Model": "模型", "LoRA": "LoRA", "none": "无", "Strength": "强度", "Prompt": "提示词", "Negative prompt": "反向提示词",
    "What to draw": "要画什么", "What to leave out": "不要什么", "Steps": "步数", "Guidance": "引导", "Sampler": "采样器", "Seed": "种子",
    "Pictures": "张数", "Width": "宽", "Height": "高", "the model's own": "模型默认", "-1 draws one": "-1 为随机",
    "Compare settings": "对比参数", "Across": "横轴", "Down": "纵轴", "Values": "取值",
    "Values apart by commas, prompts by |": "取值用逗号分隔，提示词用 | 分隔",
    "scale": "引导", "steps": "步数", "sampler": "采样器", "seed": "种子", "strength": "强度", "prompt": "提示词", "model": "模型", "lora": "LoRA",
    "size": "尺寸", "name": "名称",
    "Draw": "开始生成", "Again": "再来一次", "Vary": "换个种子", "Why": "来历", "Stop": "停止", "Remove": "移除", "First": "提前",
    "Nothing drawn yet": "还没有图片",
    "Say what you would like to see, and press Draw. The small model that comes with Safelight is ready; it knows faces, scenes and simple "
    "things.": "写下想看到的画面，然后点“开始生成”。自带的小模型已经可用，会画人像、风景和简单物体。",
    "Older": "更早的", "waiting": "等待中", "running": "进行中", "done": "完成", "failed": "失败", "cancelled": "已取消", "pending": "等待中",
    "Running": "进行中", "Waiting": "等待中", "Ended": "已结束", "Pause": "暂停", "Go on": "继续",
    "The queue is paused: what runs now is finished, nothing new begins.": "队列已暂停：正在进行的会完成，不会开始新的。",
    "Nothing runs": "没有任务在进行", "Nothing waits": "没有任务在等待", "Nothing has ended yet": "还没有结束的任务",
    "Prompts sent from these pages, from the command line's programs or from a node editor all stand here.":
    "从这些页面、其他程序或节点编辑器发来的任务都在这里排队。",
    "Search prompts, models and LoRAs": "搜索提示词、模型和 LoRA", "newest first": "从新到旧", "oldest first": "从旧到新", "Order": "顺序",
    "No picture fits": "没有符合的图片", "No picture yet": "还没有图片",
    "Pictures appear here as soon as they are drawn.": "图片画好后会出现在这里。", "Try fewer words.": "试试少写几个词。",
    "Draw the first": "去画第一张", "Choose": "选择", "Choose two pictures to compare them.": "选两张图片进行对比。",
    "Compare": "对比", "Close": "关闭", "Divide": "分割位置", "Open the file": "打开文件", "Where this picture came from": "这张图片的来历",
    "takes from": "来自", "This picture carries no graph.": "这张图片没有带流程信息。",
    "Use": "使用", "Use in Generate": "用于生成", "Narrow by name": "按名称筛选", "Put files into": "把文件放进", "or run": "或者运行",
    "Models in folders": "文件夹模型", "LoRAs": "LoRA", "ControlNets": "ControlNet", "Autoencoders": "VAE", "Embeddings": "词嵌入",
    "Text encoders": "文本编码器", "Denoisers": "去噪网络", "comes with Safelight": "Safelight 自带",
    "The small model that is always there: 64 to 128 pixels, offline, on any laptop.": "随时可用的小模型：离线运行，普通笔记本即可。",
    "This could not be done": "无法完成", "grid": "网格", "Preview": "预览", "Result": "结果", "folder": "文件夹",
}
